"""The judge of a shipped file, on three questions of the demo model's."""

from demo_k2 import asked, patterns

from hybrid_k2 import demo_model

QUESTIONS = [
    ("commands", "Which commands does hybrid-k2 have?"),
    ("licence", "What licence does hybrid-k2 have?"),
    ("licence", "What is 17 + 25?"),  # asks for something else: cannot be right
]


def test_right_answers_of_the_engine_are_counted(monkeypatch, capsys):
    monkeypatch.setattr(patterns, "written", lambda name: QUESTIONS)
    monkeypatch.setattr(asked.sys, "argv", ["asked", str(demo_model.path())])
    asked.main()
    assert capsys.readouterr().out == "asked.txt: 2 of 3\nasked_again.txt: 2 of 3\n"
