"""Answers, their faults and their revisions: a real local server is asked, and what it is asked is what stands here."""

import pytest
from pydantic import ValidationError

from stages.align.parts import pairs
from stages.lib.store import records
from stages.traces import constitution

ROWS = [{"id": f"a/{n}", "family": "f", "prompt": f"question {n}", "solution": "?"} for n in range(3)]
PRINCIPLES = ["Be brief.", "Be kind."]


def run(server, folder, **more):
    given = {"url": server.url, "source": "a/b", "principles": PRINCIPLES, "count": 3, "concurrency": 1} | more
    technique = constitution.Constitution.model_validate({"method": "constitution"} | given)
    (folder / "records").mkdir(exist_ok=True)
    records.save(folder / "records", train=ROWS)
    teacher = technique.open(None, folder / "journal")
    return list(technique.record(teacher, folder)), technique.measure(teacher, folder)


def asked(server):
    return [body["messages"][0]["content"] for body in server.bodies]


def test_every_answer_is_criticised_by_a_principle_and_written_anew(serve, tmp_path):
    server = serve()
    found, spent = run(server, tmp_path, seed=4, max_new_tokens=33)
    assert len(found) == 3 and spent["requests"] == 9
    assert {(body["max_tokens"], body["seed"]) for body in server.bodies} == {(33, 4), (33, 5), (33, 6)}
    first, faults, again = asked(server)[:3], asked(server)[3:6], asked(server)[6:]
    assert sorted(first) == ["question 0", "question 1", "question 2"]
    for question, fault, revision in zip(first, faults, again, strict=True):
        assert f"[What was asked]\n{question}\n\n[Answer]\nabout {question}\n" in fault
        assert sum(principle in fault for principle in PRINCIPLES) == 1
        assert f"[Criticism]\nabout {fault}\n" in revision
        [row] = [row for row in found if row["prompt"] == question]
        assert row["rejected"] == f"about {question}" and row["chosen"] == f"about {revision}"
        assert row["principles"][0] in fault


def test_rounds_go_on_from_the_revision(serve, tmp_path, tokenizer):
    server = serve()
    found, spent = run(server, tmp_path, rounds=2)
    assert spent["requests"] == 15 and all(len(row["principles"]) == 2 for row in found)
    for row in found:
        assert row["chosen"].count("Somebody was asked this") > 2 and row["rejected"] == f"about {row['prompt']}"
    assert len(pairs.encode(tokenizer, found, 8192)) == 3  # as dpo reads them


def test_what_was_cut_short_is_left_out_and_asked_nothing_more(serve, tmp_path):
    server = serve("cut", "answer", "answer", "cut")  # the first answer, and the first criticism of the other two
    found, spent = run(server, tmp_path)
    assert len(found) == 1 and spent["requests"] == 3 + 2 + 1
    again, _ = run(server, tmp_path)
    assert again == found and len(server.bodies) == 6  # from the journal


def test_a_principle_is_needed():
    with pytest.raises(ValidationError, match="principles"):
        constitution.Constitution.model_validate(
            {"method": "constitution", "source": "a/b", "principles": [], "count": 3}
        )
