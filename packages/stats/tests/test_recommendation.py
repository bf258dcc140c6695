"""What is recommended, on which evidence, and why others are not."""

import pandas as pd
import pytest
from modelfix_stats import StatsError, recommend, recommendation_table
from modelfix_stats.recommendation import Source, left_out_table
from modelfix_stats.study import ABBREVIATIONS, read_table

NEEDS = {"neurecover": {"history", "repair"}, "distrrep": {"risks", "repair"}}


@pytest.fixture(scope="module")
def approaches():
    table = read_table("table3_effectiveness").drop_duplicates("approach")
    levels = table["category"].str.removesuffix("-level").str.lower()
    category = dict(zip(table["approach"], levels, strict=True))
    return pd.DataFrame(
        {
            "approach": list(ABBREVIATIONS),
            "category": [
                category[a].removesuffix("-level").lower() for a in ABBREVIATIONS.values()
            ],
            "needs": [NEEDS.get(name, {"repair"}) for name in ABBREVIATIONS],
        }
    )


@pytest.fixture
def records():
    """Make records of metrics from {entrant: {metric: value}} on one subject."""

    def make(values: dict, subject: str = "mine", repetitions: int = 3, **columns) -> pd.DataFrame:
        rows = [
            {
                "subject": subject,
                "entrant": entrant,
                "approach": entrant.partition("+")[0],
                "category": "neuron",
                "repetition": r,
                "metric": metric,
                "value": value,
                "original": 0.9 if metric == "accuracy" else 0.5,
                **columns,
            }
            for entrant, metrics in values.items()
            for metric, value in metrics.items()
            for r in range(repetitions)
        ]
        return pd.DataFrame(rows)

    return make


def order(recommendation, source=None):
    return [
        choice.entrant
        for choice in recommendation.choices
        if source is None or choice.source is source
    ]


def why(recommendation, entrant):
    (found,) = [own.reason for own in recommendation.left_out if own.entrant == entrant]
    return found


@pytest.mark.parametrize(
    ("priority", "advised"),
    [
        ("accuracy", {"hudd", "fsgmix", "vere"}),
        ("repair", {"apricot", "editable-training", "hudd"}),
        ("robustness", {"apricot", "editable-training"}),
        ("fairness", {"inner"}),
        ("compatibility", {"reassure", "deeprepair", "arachne", "vere"}),
        ("time", {"minimal-3m", "reassure", "arachne", "inner"}),
    ],
)
def test_without_records_the_studys_advice_comes_first(approaches, priority, advised):
    result = recommend(None, approaches, priorities=[priority])
    assert set(order(result)[: len(advised)]) == set(order(result, Source.ADVICE)) == advised
    first = result.choices[0]
    assert "section 7.1" in first.evidence
    assert "of the study on" in first.evidence
    assert [choice.rank for choice in result.choices] == list(range(1, len(result.choices) + 1))


def test_for_large_models_the_study_advises_others(approaches):
    result = recommend(None, approaches, subjects=["imagenet-densenet121"])
    assert set(order(result, Source.ADVICE)) == {"fsgmix", "deeprepair"}
    assert why(result, "apricot") == "CORRUPTED in the study on ImageNet"


def test_what_does_not_serve_the_priority_stands_last(approaches):
    result = recommend(None, approaches, priorities=["fairness"])
    remarks = {choice.entrant: choice.remark for choice in result.choices}
    assert "raises AAOD" in remarks["hudd"]
    assert "the study warns of it" in remarks["distrrep"]
    assert order(result)[-1] == "minimal-3m"
    assert why(result, "vere") == "no evidence: neither records nor the study have its AAOD"


def test_records_come_before_the_study(approaches, records):
    data = records({"genmunn": {"repair_rate": 0.02}, "care": {"repair_rate": 0.1}})
    result = recommend(data, approaches, subjects=["mine"])
    assert order(result)[:2] == ["care", "genmunn"]
    assert result.choices[0].source is Source.RECORDS
    assert result.choices[0].evidence == "3 records of mine"
    assert result.choices[0].values == {"repair_rate": pytest.approx(0.1)}
    assert len(result.choices) == 16


def test_records_of_other_subjects_stand_between(approaches, records):
    data = pd.concat(
        [
            records({"care": {"repair_rate": 0.01}}),
            records({"care": {"repair_rate": 0.5}, "inner": {"repair_rate": 0.4}}, "other", 1),
        ]
    )
    result = recommend(data, approaches, subjects=["mine"])
    assert order(result)[:2] == ["care", "inner"]
    assert result.choices[1].source is Source.ELSEWHERE
    assert result.choices[1].evidence == "1 record of other"
    everywhere = recommend(data, approaches)
    assert everywhere.choices[0].evidence == "4 records of mine, other"


def test_hard_subjects_cost_nothing(approaches, records):
    easy = records({"care": {"repair_rate": 0.6}, "inner": {"repair_rate": 0.7}}, "easy")
    hard = records({"inner": {"repair_rate": 0.1}, "genmunn": {"repair_rate": 0.05}}, "hard")
    result = recommend(pd.concat([easy, hard]), approaches)
    assert order(result, Source.RECORDS)[0] == "inner"  # though care's mean is larger
    assert result.choices[0].score == 1.0


def test_priorities_are_of_equal_weight(approaches, records):
    data = records(
        {
            "care": {"repair_rate": 0.9, "nfr": 0.09},
            "inner": {"repair_rate": 0.8, "nfr": 0.01},
            "genmunn": {"repair_rate": 0.1, "nfr": 0.02},
        }
    )
    both = recommend(data, approaches, priorities=["repair", "compatibility"], subjects=["mine"])
    assert order(both)[:3] == ["inner", "care", "genmunn"]
    assert order(recommend(data, approaches, subjects=["mine"]))[0] == "care"


def test_what_is_over_a_limit_is_left_out_with_the_number(approaches, records):
    values = {"repair_rate": 0.5, "nfr": 0.012, "seconds": 90.0}
    fine = {"repair_rate": 0.1, "nfr": 0.005, "seconds": 60.0}
    data = records({"care": values, "inner": {**values, "nfr": 0.0}, "genmunn": fine})
    result = recommend(data, approaches, max_nfr=0.005, max_seconds=80, subjects=["mine"])
    assert order(result)[0] == "genmunn"
    assert why(result, "care") == "NFR 1.20 % is over 0.50 % (3 records of mine)"
    assert why(result, "inner") == "time 01m30s is over 01m20s (3 records of mine)"
    assert "the study on MNIST" in why(result, "apricot")


def test_a_limit_is_judged_by_the_nearest_evidence(approaches, records):
    data = records({"apricot": {"seconds": 50.0}})
    result = recommend(data, approaches, max_seconds=60)
    (apricot,) = [choice for choice in result.choices if choice.entrant == "apricot"]
    assert apricot.source is Source.ADVICE
    assert apricot.values["seconds"] == 50.0
    assert "time in 3 records of mine" in apricot.evidence


def test_what_the_user_does_not_have(approaches):
    result = recommend(None, approaches, given=["repair", "train"])
    assert why(result, "neurecover") == "needs history, which is not given"
    assert why(result, "distrrep") == "needs risks, which is not given"
    assert len(result.choices) == 14
    assert len(recommend(None, approaches).choices) == 16


def test_an_approach_that_cannot_be_applied(approaches, records):
    blocked = approaches.assign(blocked=[None] * 15 + ["UNADAPTABLE on mine (no layer)"])
    assert blocked["approach"].iloc[-1] == "inner"
    result = recommend(None, blocked, subjects=["mine"])
    assert why(result, "inner") == "UNADAPTABLE on mine (no layer)"
    tuned = records({"inner+other": {"repair_rate": 0.3}})
    result = recommend(tuned, blocked, subjects=["mine"])
    assert order(result)[0] == "inner+other"  # another configuration of it was FIXED here
    assert not [own for own in result.left_out if own.approach == "inner"]


def test_an_entrant_without_a_finished_cell(approaches, records):
    failed = records({"care": {"repair_rate": None}}, outcome="FAILURE", reason="out of memory")
    here = recommend(failed, approaches, subjects=["mine"])
    assert why(here, "care") == "FAILURE on mine (out of memory)"
    elsewhere = recommend(failed, approaches)
    (care,) = [choice for choice in elsewhere.choices if choice.entrant == "care"]
    assert care.source is Source.TABLES
    assert "FAILURE on mine (out of memory)" in care.remark


def test_mixed_definitions_are_not_used_and_said(approaches, records):
    data = pd.concat(
        [
            records({"care": {"repair_rate": 0.2}}, definition="1"),
            records({"inner": {"repair_rate": 0.3}}, definition="2"),
        ]
    )
    result = recommend(data, approaches, subjects=["mine"])
    assert not order(result, Source.RECORDS)
    assert "RR of the records is not used" in result.notes[0]


def test_a_fix_that_costs_accuracy_says_so(approaches, records):
    data = records({"care": {"repair_rate": 0.2, "accuracy": 0.8}})
    result = recommend(data, approaches, subjects=["mine"])
    assert result.choices[0].remark == "accuracy falls by 10.0 points"


@pytest.mark.parametrize("wrong", [["speed"], []])
def test_unknown_priorities(approaches, wrong):
    with pytest.raises(StatsError, match="choose from accuracy, repair"):
        recommend(None, approaches, priorities=wrong)


def test_tables(approaches, records):
    data = records({"care": {"accuracy": 0.92, "asr": 0.4, "nfr": 0.0, "seconds": 61.0}})
    result = recommend(data, approaches, priorities=["accuracy", "robustness"], max_nfr=0.02)
    frame = recommendation_table(result, ["accuracy", "robustness"]).to_frame()
    assert list(frame)[3:7] == ["change of ACC", "change of ASR", "NFR", "time"]
    assert list(frame.iloc[0])[:8] == [
        "1", "care", "neuron", "+2.00", "-10.00", "0.00 %", "01m01s", "records",
    ]  # fmt: skip
    assert len(left_out_table(result).rows) == len(result.left_out)
    assert not frame.astype(str).apply(lambda column: column.str.contains("nan")).any().any()


def test_nobody_is_left(approaches):
    result = recommend(None, approaches, max_seconds=1)
    assert not result.choices
    assert len(result.left_out) == 16
    assert result.approaches == []
    assert recommendation_table(result).rows == ()
