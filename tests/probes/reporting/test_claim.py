"""A claim has one link, and what it says is escaped."""

import re

from probes.reporting.claim import Claim, clauses, linked, sentence


def test_each_clause_has_one_link_and_no_number_is_one() -> None:
    claims = [
        Claim("weights moved most in layer 10 (+0.05)", "norm", "weights moved most"),
        Claim("gate flips: 18 %", "flips"),
    ]
    shown = clauses(claims, "m0-")
    assert re.findall('<a href="#([^"]+)">([^<]+)</a>', shown) == [
        ("m0-norm", "Weights moved most"),
        ("m0-flips", "gate flips"),
    ]
    assert (
        re.sub("<[^>]+>", "", shown) == sentence(claims) == "Weights moved most in layer 10 (+0.05); gate flips: 18 %."
    )
    assert sentence([]) == ""


def test_what_names_say_is_text() -> None:
    shown = linked(Claim("on <b> prompts exact match rises", "x", "exact match"))
    assert shown == 'on &lt;b&gt; prompts <a href="#x">exact match</a> rises'
    assert linked(Claim("<i>all</i>, of it", "x")).startswith('<a href="#x">&lt;i&gt;all&lt;/i&gt;</a>')
