"""The example of low rank: the tables that it prints, and what it claims."""

import low_rank


def test_prints_what_was_learned(capsys, monkeypatch):
    monkeypatch.setattr(low_rank, "RATES", [0.3, 1.0])
    best = low_rank.main(["--steps", "80", "--seeds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].strip() for line in lines[4:]] == list(low_rank.OPTIMIZERS) == list(best)
    sizes = {name: results[0].last_bytes for name, results in best.items()}
    assert sizes["Muon"] == 4 * 48 * 32
    assert sizes["AdamW"] == 2 * sizes["Muon"] + 4
    assert sizes["LowRankMuon, rank 4"] == 4 * (48 + 32) * 4 + 8 * 4 * 4
    errors = {name: results[0].error for name, results in best.items()}
    # Measured: AdamW 0.001, Muon 0.003, LowRankMuon 0.22, at rank 4 or more 0.018, at rank 4 0.006; 22 before training.
    assert errors["LowRankMuon"] < 2.0 and errors["LowRankMuon, rank 4"] < 0.1
    assert errors["LowRankMuon, rank 4"] < errors["LowRankMuon, rank >= 4"] < errors["LowRankMuon"]


def test_averages_of_singular_vectors_cancel_unless_they_are_aligned():
    plain, aligned = low_rank.average_lengths()
    # Measured: 0.13 to 0.72, and 0.99 each.
    assert plain.mean() < 0.6 < 0.95 < aligned.min()
