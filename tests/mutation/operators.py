"""The mutants of a source text: every small change at one place that a test should notice.

A mutant is an edit of the text, found in its syntax tree, so that the lines before and after it can be shown as they
are. Nothing is changed in docstrings, annotations, decorators, imports, asserts, raise statements, logging calls and
f-strings: a change there is not one of the method.
"""

import ast
import dataclasses
import re

ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "%": "*", "**": "*"}
COMPARISON = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "is": "is not", "is not": "is", "in": "not in", "not in": "in",
}  # fmt: skip
OPPOSITE = {"==", "!=", "is", "is not", "in", "not in"}
BOOLEAN = {"and": "or", "or": "and"}
CALLS = {
    "min": "max", "max": "min", "argmin": "argmax", "argmax": "argmin", "sum": "mean", "mean": "sum",
    "any": "all", "all": "any", "ceil": "floor", "floor": "ceil",
    "ones": "zeros", "zeros": "ones", "ones_like": "zeros_like", "zeros_like": "ones_like",
}  # fmt: skip
CLIPPING = {"clamp", "clip"}
DIMENSIONS = {"dim", "dims", "axis"}
LOGGERS = {"logger", "logging", "warnings"}
TYPE_MAKERS = {"TypeVar", "NewType", "cast"}
SKIPPED = (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr)
TOKEN = re.compile(rb"#[^\n]*|not\s+in\b|is\s+not\b|[a-z]+|[-+*/%<>=!]+")


@dataclasses.dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file."""

    file: str
    line: int
    column: int
    operator: str
    before: str
    """The changed line as it is, without its indentation."""
    after: str
    lines: range
    """The lines of the statement that is changed."""
    source: str
    """The whole text with the change."""

    @property
    def id(self) -> str:
        """Stable as long as the file is."""
        return f"{self.file}:{self.line}:{self.column}:{self.operator}"


def mutants(source: str, file: str) -> list[Mutant]:
    """All mutants of a source text, in the order of their places."""
    finder = _Finder(source.encode())
    finder.visit(ast.parse(source))
    found = [_mutant(finder.source, file, edit) for edit in sorted(finder.edits)]
    return [mutant for mutant in found if mutant.source != source]


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class _Edit:
    start: int
    end: int
    operator: str
    text: bytes
    first_line: int
    last_line: int


def _mutant(source: bytes, file: str, edit: _Edit) -> Mutant:
    left, right = source.rfind(b"\n", 0, edit.start) + 1, source.find(b"\n", edit.end)
    right = len(source) if right < 0 else right
    after = source[left : edit.start] + edit.text + source[edit.end : right]
    return Mutant(
        file=file,
        line=source.count(b"\n", 0, edit.start) + 1,
        column=edit.start - left + 1,
        operator=edit.operator,
        before=one_line(source[left:right].decode()),
        after=one_line(after.decode()),
        lines=range(edit.first_line, edit.last_line + 1),
        source=(source[: edit.start] + edit.text + source[edit.end :]).decode(),
    )


def one_line(text: str) -> str:
    """The text with every run of blanks as one blank."""
    return " ".join(text.split())


class _Finder(ast.NodeVisitor):
    def __init__(self, source: bytes) -> None:
        self.source = source
        self.edits: list[_Edit] = []
        self._starts = [0] + [match.end() for match in re.finditer(b"\n", source)]
        self._lines = (1, 1)
        self._may_return_none = False

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, SKIPPED):
            return
        outer = self._lines
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
            self._lines = node.lineno, end
        super().visit(node)
        self._lines = outer

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.expr) -> bytes:
        start, end = self._span(node)
        return self.source[start:end]

    def _edit(self, start: int, end: int, text: bytes, operator: str) -> None:
        self.edits.append(_Edit(start, end, operator, text, *self._lines))

    def _replace(self, node: ast.expr | ast.stmt, text: bytes, operator: str) -> None:
        self._edit(*self._span(node), text, operator)

    def _swap(self, left: ast.expr, right: ast.expr, table: dict[str, str], operator: str) -> str | None:
        """Exchange the operator between two operands for its counterpart; return the original operator."""
        start, end = self._span(left)[1], self._span(right)[0]
        for match in TOKEN.finditer(self.source, start, end):
            token = one_line(match.group().decode())
            if token in table:
                self._edit(match.start(), match.end(), table[token].encode(), operator)
                return token
        return None

    # Operators

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, ast.Pow):  # binds more tightly than what replaces it
            self._replace(node, b"(%b * %b)" % (self._text(node.left), self._text(node.right)), "arithmetic")
        elif not any(_is_text_or_list(side) for side in (node.left, node.right)):
            self._swap(node.left, node.right, ARITHMETIC, "arithmetic")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        augmented = {f"{old}=": f"{new}=" for old, new in ARITHMETIC.items()}
        if not _is_text_or_list(node.value):
            self._swap(node.target, node.value, augmented, "arithmetic")
        self._replace(node, b"pass", "statement")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        left = node.left
        for right in node.comparators:
            self._swap(left, right, COMPARISON, "comparison")
            left = right
        for side in (node.left, *node.comparators):
            for part in side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]:
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    self._replace(part, repr(part.value + "_").encode(), "string")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._swap(left, right, BOOLEAN, "boolean")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self._replace(node, b"(%b)" % self._text(node.operand), "negation")
        self.generic_visit(node)

    # Conditions

    def _negate(self, condition: ast.expr) -> None:
        if isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not):
            return  # its `not` is dropped already
        if isinstance(condition, ast.Compare) and len(condition.ops) == 1:
            gap = self.source[self._span(condition.left)[1] : self._span(condition.comparators[0])[0]]
            if any(one_line(token.decode()) in OPPOSITE for token in TOKEN.findall(gap)):
                return  # its operator is exchanged for the opposite already
        self._replace(condition, b"(not (%b))" % self._text(condition), "condition")

    def visit_If(self, node: ast.If) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for condition in node.ifs:
            self._negate(condition)
        self.generic_visit(node)

    # Constants

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._replace(node, repr(not value).encode(), "constant")
        elif isinstance(value, int | float):
            self._replace(node, repr(value + 1).encode(), "constant")

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None:
                self._replace(bound, b"", "slice")
        self.generic_visit(node)

    # Calls

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if _is_logging(node) or name in TYPE_MAKERS:
            return
        end = self._span(node.func)[1]
        is_method = isinstance(node.func, ast.Attribute)
        if name in CALLS and (is_method or name not in {"sum", "mean"}):
            self._edit(end - len(name), end, CALLS[name].encode(), "call")
        if isinstance(node.func, ast.Attribute) and name in CLIPPING:
            is_function = getattr(node.func.value, "id", "") in {"np", "torch"}
            self._replace(node, self._text(node.args[0] if is_function else node.func.value), "clipping")
        for keyword in node.keywords:
            self._keyword(keyword)
        self.visit(node.func)
        for argument in node.args:
            self.visit(argument)

    def _keyword(self, keyword: ast.keyword) -> None:
        value = keyword.value
        if keyword.arg in DIMENSIONS and isinstance(value, ast.Constant) and isinstance(value.value, int):
            self._replace(value, repr(value.value - 1 if value.value else 1).encode(), "dimension")
        elif isinstance(value, ast.Constant) and isinstance(value.value, str):
            if keyword.arg not in {None, "kind"}:
                start, end = self._starts[keyword.lineno - 1] + keyword.col_offset, self._span(value)[1]
                comma = re.compile(rb"\s*,").match(self.source, end)
                self._edit(start, comma.end() if comma else end, b"", "keyword")
        else:
            self.visit(value)

    # Statements

    def visit_Module(self, node: ast.Module) -> None:
        self._body(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._body(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = self._may_return_none
        self._may_return_none = node.returns is not None and ast.unparse(node.returns).endswith("| None")
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self._body(node.body)
        self._may_return_none = outer

    def _body(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.visit(statement)

    def visit_Return(self, node: ast.Return) -> None:
        if self._may_return_none and node.value is not None and not isinstance(node.value, ast.Constant):
            self._replace(node.value, b"None", "return")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and not _is_logging(node.value):
            self._replace(node, b"pass", "statement")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return
        if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self._replace(node, b"pass", "statement")
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)


def _is_text_or_list(node: ast.expr) -> bool:
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return is_text or isinstance(node, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp)


def _is_logging(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") in LOGGERS
