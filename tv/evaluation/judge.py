"""Scores by a judge: any model behind an OpenAI-compatible endpoint. Without a judge nothing is sent anywhere."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from tv.errors import InputError, first_line

RUBRIC = (
    "You grade one answer. Judge whether it is correct, complete and clear, and nothing else.\n\n"
    "Question:\n{question}\n\nAnswer:\n{response}\n\n{reference}"
    "End with one line of the form `Score: N`, N from {lowest} (useless) to {highest} (perfect)."
)
_SCORE = re.compile(r"score\W{0,4}(-?\d+(?:\.\d+)?)", re.IGNORECASE)
_AGAIN = (408, 409, 429, 500, 502, 503, 504)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key, or what is judged, to another address.

    `huggingface_hub.InferenceClient` follows redirects, and that can be turned off only for the whole process.
    """

    def redirect_request(self, *_: object) -> None:
        """Follow none: the redirect's status is the answer."""


_OPENER = urllib.request.build_opener(_NoRedirect)


class JudgeError(InputError):
    """The judge cannot be reached, or does not answer in the form that it was asked for."""


@dataclass(frozen=True)
class Judge:
    """A model behind an OpenAI-compatible endpoint that scores answers: where it is, and what it is asked.

    The key is read from the environment and appears in no message. Nothing is sent before `score` is called.

    Args:
        url: The address up to `/v1`: `/chat/completions` is added.
        model: The model's name there.
        key_variable: The environment variable that holds the key; without a value no key is sent.
        rubric: What the judge is asked. It may use {question}, {response}, {reference}, {lowest} and {highest}, and has
            to ask for a line `Score: N`.
        lowest: The lowest score.
        highest: The highest score.
        timeout: Seconds that an answer may take.
        attempts: How often the judge is asked before it counts as failed.
        wait: Seconds before the second attempt; twice as long before each that follows.

    Examples:
        >>> judge = tv.Judge("http://localhost:8000/v1", model="grader", highest=5)
        >>> [line for line in judge.rubric.splitlines() if "Score" in line]
        ['{reference}End with one line of the form `Score: N`, N from {lowest} (useless) to {highest} (perfect).']
    """

    url: str  # up to `/v1`: `/chat/completions` is added
    model: str
    key_variable: str = "OPENAI_API_KEY"  # without a value no key is sent
    rubric: str = RUBRIC  # may use {question}, {response}, {reference}, {lowest}, {highest}
    lowest: float = 1
    highest: float = 10
    timeout: float = 60  # seconds an answer may take
    attempts: int = 4
    wait: float = 1  # seconds before the second attempt; twice as long before each that follows

    def score(self, question: str, response: str, reference: str | None = None) -> float:
        """Ask for the score of one answer.

        Args:
            question: What was asked.
            response: The answer to be judged.
            reference: A correct answer, for comparison.

        Returns:
            From `lowest` to `highest`.

        Raises:
            JudgeError: In one line: what failed, where, what to do.
        """
        told = f"A correct answer, for comparison:\n{reference}\n\n" if reference else ""
        values = {"question": question, "response": response, "reference": told}
        values |= {"lowest": f"{self.lowest:g}", "highest": f"{self.highest:g}"}
        try:
            asked = self.rubric.format(**values)
        except (KeyError, IndexError, ValueError) as error:
            raise JudgeError(f"rubric: {first_line(error)} cannot be filled in; use {', '.join(values)}") from error
        reply = self._ask(asked)
        scores = _SCORE.findall(reply)
        if not scores:
            raise JudgeError(f"{self.url}: the judge {self.model} gave no `Score: N` but {reply.strip()[:80]!r}")
        score = float(scores[-1])
        if not self.lowest <= score <= self.highest:
            raise JudgeError(
                f"{self.url}: the judge {self.model} gave {score:g}, not from {self.lowest:g} to {self.highest:g}"
            )
        return score

    def _ask(self, text: str) -> str:
        message = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": text}]}
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            last = attempt == self.attempts - 1
            try:
                with _OPENER.open(self._request(message), timeout=self.timeout) as answer:
                    return self._content(answer.read())
            except urllib.error.HTTPError as error:
                if error.code not in _AGAIN or last:
                    raise JudgeError(f"{self.url}: {self._refused(error.code)}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                if last or isinstance(error, ValueError):
                    reason = getattr(error, "reason", error)
                    raise JudgeError(f"{self.url}: the judge cannot be reached: {reason}") from None
        raise JudgeError(f"{self.url}: {self.attempts} attempts; at least one has to be made")

    def _request(self, message: object) -> urllib.request.Request:
        if not self.url.startswith(("http://", "https://")):
            raise JudgeError(f"judge {self.url!r}: give an address that starts with http:// or https://")
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.key_variable, "")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.url.rstrip('/')}/chat/completions"
        return urllib.request.Request(url, json.dumps(message).encode(), headers, method="POST")

    def _content(self, body: bytes) -> str:
        try:
            return str(json.loads(body)["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError):
            raise JudgeError(
                f"{self.url}: the answer is not what /chat/completions gives; is the address right?"
            ) from None

    def _refused(self, code: int) -> str:
        if code in (401, 403):
            return f"refused (HTTP {code}); put a valid key into the environment variable {self.key_variable}"
        if code == 404:
            return (
                f"nothing there (HTTP 404); is {self.model} there, and does the address end before /chat/completions?"
            )
        return f"HTTP {code}, after {self.attempts if code in _AGAIN else 1} attempts"
