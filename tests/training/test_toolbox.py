import pytest

from training.corpus import toolbox
from training.corpus.toolbox import Toolbox, ToolError


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 + 3 * 4", 14), ("(2 + 3) * 4", 20), ("7 / 2", 3.5), ("3 - -2", 5)],
)
def test_the_calculator_computes(expression: str, value: float) -> None:
    assert toolbox.calculate(expression) == value


@pytest.mark.parametrize("expression", ["2 +", "1 / 0", "__import__('os')", "2 ** 9"])
def test_the_calculator_refuses_what_is_not_arithmetic(expression: str) -> None:
    with pytest.raises(ToolError):
        toolbox.calculate(expression)


def test_units_convert_there_and_back() -> None:
    for source, target in toolbox.UNITS:
        there = toolbox.convert(3000, source, target)
        assert toolbox.convert(there, target, source) == pytest.approx(3000, rel=0.01)


def test_a_failed_call_is_a_result() -> None:
    tools = Toolbox({"kelmo": 4})
    assert tools.call("lookup", {"key": "kelmo"}) == {"value": 4}
    assert tools.call("lookup", {"key": "other"}) == {"error": "not found"}
    assert "error" in tools.call("weather", {})
    assert "error" in tools.call("no_such_tool", {})


def test_the_weather_of_a_city_does_not_change() -> None:
    assert toolbox.weather("Oslo") == toolbox.weather("Oslo")


def test_searched_items_have_the_word_in_their_name() -> None:
    assert all("red" in item for item in toolbox.search("red"))
    assert toolbox.search("nonsense") == []
