"""What an epoch went on without is told once, when it ends."""

from __future__ import annotations

from augclient.report import Report
from augproto.messages import Bad


def bad(step: int, sample: int, epoch: int = 0) -> Bad:
    return Bad(epoch, step, sample, f"{sample}.jpg", "broken")


def test_an_epoch_without_bad_samples_says_nothing() -> None:
    report = Report(3)
    assert [report.handed(0, step, ()) for step in range(3)] == [None] * 3
    assert report.bad_samples(0) == ()


def test_the_report_comes_with_the_last_step_in_whatever_order() -> None:
    report = Report(3)
    assert report.handed(0, 2, [bad(2, 9)]) is None
    assert report.handed(0, 0, [bad(0, 4), bad(0, 5)]) is None
    assert report.handed(0, 1, ()) == (
        "epoch 0 went on without 3 bad samples:\n  sample 4 (4.jpg): broken\n"
        "  sample 5 (5.jpg): broken\n  sample 9 (9.jpg): broken"
    )


def test_a_batch_that_is_handed_out_again_counts_once() -> None:
    report = Report(2)
    for _ in range(3):
        assert report.handed(0, 0, [bad(0, 4)]) is None
    assert (
        report.handed(0, 1, ())
        == "epoch 0 went on without 1 bad sample:\n  sample 4 (4.jpg): broken"
    )
    assert report.handed(0, 1, ()) is None, "told once"
    assert report.bad_samples(0) == (bad(0, 4),)


def test_a_long_report_is_cut_and_says_so() -> None:
    told = Report(1).handed(0, 0, [bad(0, sample) for sample in range(50)])
    assert told is not None
    assert told.startswith("epoch 0 went on without 50 bad samples:")
    assert told.endswith("... and 30 more")
    assert len(told.splitlines()) == 22


def test_a_sample_of_an_array_has_no_path() -> None:
    told = Report(1).handed(0, 0, [Bad(0, 0, 7, "", "broken")])
    assert told == "epoch 0 went on without 1 bad sample:\n  sample 7: broken"


def test_two_epochs_are_remembered() -> None:
    report = Report(2)
    for epoch in range(4):
        report.handed(epoch, 0, [bad(0, epoch, epoch)])
    assert [len(report.bad_samples(epoch)) for epoch in range(5)] == [0, 0, 1, 1, 0]


def test_the_same_samples_are_listed_once_and_others_anew() -> None:
    report = Report(1)
    told = [report.handed(epoch, 0, [bad(0, 4, epoch)]) for epoch in range(3)]
    assert told[1:] == [f"epoch {epoch} went on without the same 1 bad sample" for epoch in (1, 2)]
    other = report.handed(3, 0, [bad(0, 5, 3)])
    assert other == "epoch 3 went on without 1 bad sample:\n  sample 5 (5.jpg): broken"
