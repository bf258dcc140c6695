"""Statistics of DL model fixing: functions of data frames that know no other part of modelfix."""

from modelfix_stats.cells import Cells, make_cells
from modelfix_stats.claims import Claim, Verdict
from modelfix_stats.comparison import Comparison, Options, compare, compare_all
from modelfix_stats.correction import adjust
from modelfix_stats.effects import detectable
from modelfix_stats.errors import StatsError
from modelfix_stats.findings import Finding, findings, findings_table
from modelfix_stats.frame import Summary, check, from_summary, select
from modelfix_stats.inputs import (
    accuracy_kept,
    bootstrap,
    difference,
    mcnemar_exact,
    paired_mcnemar,
    rate_below,
)
from modelfix_stats.letters import Letters, compact_letters, group_letters
from modelfix_stats.metrics import METRICS, Metric, find_metric
from modelfix_stats.pairs import permutation
from modelfix_stats.ranks import Ranks, mean_ranks, pareto_front
from modelfix_stats.recommendation import (
    METRIC_OF,
    Choice,
    LeftOut,
    Recommendation,
    left_out_table,
    recommend,
    recommendation_table,
)
from modelfix_stats.study import (
    agreement,
    beside_published,
    identity,
    published,
    published_letters,
)
from modelfix_stats.tables import (
    Table,
    beside_study,
    effectiveness,
    groups,
    matrix_table,
    pairs_table,
    properties,
    ranking_table,
    times,
)
from modelfix_stats.values import category_means, counted, describe, success_rates, wilson

__all__ = [
    "METRICS",
    "METRIC_OF",
    "Cells",
    "Choice",
    "Claim",
    "Comparison",
    "Finding",
    "LeftOut",
    "Letters",
    "Metric",
    "Options",
    "Ranks",
    "Recommendation",
    "StatsError",
    "Summary",
    "Table",
    "Verdict",
    "accuracy_kept",
    "adjust",
    "agreement",
    "beside_published",
    "beside_study",
    "bootstrap",
    "category_means",
    "check",
    "compact_letters",
    "compare",
    "compare_all",
    "counted",
    "describe",
    "detectable",
    "difference",
    "effectiveness",
    "find_metric",
    "findings",
    "findings_table",
    "from_summary",
    "group_letters",
    "groups",
    "identity",
    "left_out_table",
    "make_cells",
    "matrix_table",
    "mcnemar_exact",
    "mean_ranks",
    "paired_mcnemar",
    "pairs_table",
    "pareto_front",
    "permutation",
    "properties",
    "published",
    "published_letters",
    "ranking_table",
    "rate_below",
    "recommend",
    "recommendation_table",
    "select",
    "success_rates",
    "times",
    "wilson",
]
