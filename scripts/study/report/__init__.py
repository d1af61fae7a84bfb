"""The report of a study: the answer in sentences, figures and tables, as a page and for papers."""

from scripts.study.report.build import (
    ReportConfig as ReportConfig,
    run_report as run_report,
    write as write,
)
