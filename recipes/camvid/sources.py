"""What a selection consists of, counted afterwards from the manifest that no selection may read.

``python sources.py --manifest wild/manifest.csv --out sources.csv selections/ads.parquet ...`` prints and writes, for
every source, its share of the wild images and of each selection; the last row counts what the manifest calls a street.
"""

import argparse
from pathlib import Path

import pandas as pd


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("selections", type=Path, nargs="+")
    options = parser.parse_args()
    manifest = pd.read_csv(options.manifest)
    columns = {"wild": manifest}
    for path in options.selections:
        chosen = pd.read_parquet(path)["key"]
        columns[path.stem] = manifest[manifest["key"].isin(chosen)]
        if len(columns[path.stem]) != len(chosen):
            raise SystemExit(f"{path}: {len(chosen)} keys, of which {len(columns[path.stem])} are in the manifest")
    shares = pd.DataFrame({name: shares_of(rows) for name, rows in columns.items()}).fillna(0.0)
    shares.sort_values("wild", ascending=False).to_csv(options.out, index_label="source", float_format="%.4f")
    print(shares.sort_values("wild", ascending=False).to_string(float_format=lambda share: f"{100 * share:.1f} %"))


def shares_of(rows: pd.DataFrame) -> pd.Series:
    """Share of each source among the rows, and of the rows whose note says street."""
    shares = rows["source"].value_counts(normalize=True)
    shares["any street"] = rows["note"].str.contains("street", case=False, na=False).mean()
    return shares


if __name__ == "__main__":
    main()
