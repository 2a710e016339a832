"""Counts the sources of a selection's images, by the manifest that no selection may read.

``python sources.py --manifest wild/manifest.csv --budget 0.1 --out sources.csv selections/ads ...`` prints and writes a
row for every source: its share of the wild images, and of the first tenth of each order (over all its seeds). One more
row counts the images that the manifest calls streets.
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from pipeline.selection.select import image_count


def main() -> None:
    """Count the sources, print them and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--budget", type=json.loads, required=True, help="a count, or a fraction of each order")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("selections", type=Path, nargs="+")
    options = parser.parse_args()
    manifest = pd.read_csv(options.manifest)
    columns = {"wild": manifest}
    known = manifest.set_index("key")
    if not known.index.is_unique:
        raise SystemExit(f"{options.manifest} names an image twice")
    for path in options.selections:
        orders = [pd.read_parquet(order)["key"] for order in sorted(path.glob("*.parquet"))]
        chosen = pd.concat([order.iloc[: image_count(options.budget, len(order))] for order in orders])
        if unknown := sorted(set(chosen) - set(known.index)):
            raise SystemExit(f"{path}: {len(unknown)} of its images are not in the manifest, {unknown[0]} among them")
        columns[path.name] = known.loc[chosen]
    shares = pd.DataFrame({name: shares_of(rows) for name, rows in columns.items()}).fillna(0.0)
    shares.sort_values("wild", ascending=False).to_csv(options.out, index_label="source", float_format="%.4f")
    print(shares.sort_values("wild", ascending=False).to_string(float_format=lambda share: f"{100 * share:.1f} %"))


def shares_of(rows: pd.DataFrame) -> pd.Series:
    """The share of each source among the rows, and of the rows whose note says street."""
    shares = rows["source"].value_counts(normalize=True)
    shares["any street"] = rows["note"].str.contains("street", case=False, na=False).mean()
    return shares


if __name__ == "__main__":
    main()
