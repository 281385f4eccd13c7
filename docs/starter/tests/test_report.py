"""The report: damaged rows are named, a file that cannot be used is one clear error."""

import logging
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

import report

GOOD = "customer_id,plan,balance,logins,left\n1,pro,100.0,3,1\n2,pro,200.0,4,0\n3,basic,5,0,1\n"
pytestmark = pytest.mark.usefixtures("prefect_server")


def test_each_plan_is_summarized_and_a_second_run_replaces_the_report(tmp_path: Path) -> None:
    source, target = tmp_path / "customers.csv", tmp_path / "report.md"
    source.write_text(GOOD, encoding="utf-8")
    for _ in range(2):
        report.report_flow(source, target)
    lines = target.read_text(encoding="utf-8").splitlines()
    assert lines.count("| pro | 2 | 150.00 | 50% |") == 1, f"the figures of pro: {lines}"
    assert lines.count("| basic | 1 | 5.00 | 100% |") == 1, f"the figures of basic: {lines}"
    assert sorted(tmp_path.iterdir()) == [source, target], "a temporary file is left"


def test_damaged_rows_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = ["x,pro,1,1,0", "4,,1,1,0", "4,pro,12 dollars,1,0", "4,pro,nan,1,0", "4,pro,1,-1,0"]
    damaged += ["4,pro,1,1,?", "4,pro,1", "4,pro,12,50,3,0", "1,pro,1,1,0"]
    source = tmp_path / "customers.csv"
    source.write_text(GOOD + "\n".join(damaged), encoding="utf-8")
    text = report.report_flow(source, tmp_path / "report.md")
    assert "| pro | 2 | 150.00 | 50% |" in text, f"a damaged row was counted: {text}"
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    for number, row in enumerate(damaged, start=5):
        assert f"left out: line {number}: " in text, f"the report does not name {row!r}: {text}"
        assert any(f"line {number}: " in line for line in warnings), f"no WARNING names {row!r}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (b"", "the file is empty"),
        (b"customer_id;plan;balance;logins;left\n1;pro;1;1;0\n", "no column"),
        (b"customer_id,plan,balance,logins,left\n", "no row that can be used"),
        (
            b"customer_id,plan,balance,logins,left\nx,pro,1,1,0\ny,pro,1,1,0\n",
            "no row that can be used; line 2: .*'x'.*; line 3: .*'y'",
        ),
        (b"customer_id,plan,balance,logins,left\n1,caf\xe9,1,1,0\n", "utf-8"),
    ],
    ids=["missing", "empty", "semicolons", "no rows", "damaged", "not UTF-8"],
)
def test_a_file_that_cannot_be_used_is_one_clear_error(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    source, target = tmp_path / "customers.csv", tmp_path / "report.md"
    if content is not None:
        source.write_bytes(content)
    target.write_text("the last good report", encoding="utf-8")
    with pytest.raises(ValueError, match=f"customers.csv.*{expected}"):
        report.report_flow(source, target)
    assert target.read_text(encoding="utf-8") == "the last good report", "the report is overwritten"


def test_a_missing_server_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path / "customers.csv")])
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(SystemExit, match=r"error: .*Start the server") as exit_info,
    ):
        report.main()
    assert "\n" not in str(exit_info.value), "more than one line is printed"
