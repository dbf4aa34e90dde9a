"""The example's aggregator: what counts as a score, and that it counts once."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "examples" / "leaderboard" / "aggregator.py"


@pytest.fixture(scope="module")
def aggregator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("leaderboard_aggregator", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def enveloped(channel: str, message_id: str, data: object, encoding: str = "json") -> bytes:
    return json.dumps({"channel": channel, "messages": [{"id": message_id, "data": data, "encoding": encoding}]}).encode()


def test_the_player_is_the_channels_whatever_the_message_claims(aggregator):
    record = enveloped("score:Ada", "a:0:0", '{"points": 7, "player": "Bob"}')
    assert list(aggregator.scores_in(record)) == [("a:0:0", "Ada", 7)]


@pytest.mark.parametrize(
    "data", ['{"points": 0}', '{"points": -5}', '{"points": 1e9}', '{"points": "7"}', '{"points": true}', "{}", "[]", "7", ""]
)
def test_what_is_not_a_score_is_refused(aggregator, data):
    with pytest.raises((ValueError, KeyError, TypeError)):
        list(aggregator.scores_in(enveloped("score:Ada", "a:0:0", data)))


def test_a_record_read_again_after_a_restart_counts_once(aggregator, tmp_path):
    scores = [aggregator.Score("a:0:0", "Ada", 7), aggregator.Score("a:1:0", "Ada", 3), aggregator.Score("b:0:0", "Bob", 9)]
    board = aggregator.Board(str(tmp_path / "scores.db"))
    board.add(scores, now=1000.0)
    board.close()
    board = aggregator.Board(str(tmp_path / "scores.db"))
    board.add([*scores, aggregator.Score("b:1:0", "Bob", 2)], now=1001.0)
    assert board.top() == [{"rank": 1, "player": "Bob", "score": 11}, {"rank": 2, "player": "Ada", "score": 10}]


def test_the_board_is_the_ten_best_and_ties_go_by_name(aggregator):
    board = aggregator.Board(":memory:")
    board.add([aggregator.Score(f"{n}", f"player-{n:02}", 5) for n in reversed(range(12))], now=0.0)
    assert [row["player"] for row in board.top()] == [f"player-{n:02}" for n in range(10)]
