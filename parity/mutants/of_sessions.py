"""Faults of a text that grows by turns: what its state holds, where a turn ends, and what is kept in a file."""

from parity.suite.mutants.mutant import Mutant

SHOWN = ("parity/tests/generation/test_session.py", "-k", "shown or bound")
TURNS = ("parity/tests/generation/test_session.py", "-k", "turn or backend")
PROMPT = ("parity/tests/generation/test_session.py", "-k", "long_prompt")
DECODE = ("parity/tests/generation/test_decode.py", "-k", "whole_text or programs")

SESSIONS = (
    Mutant(
        "session: after an end of text there is nothing to go on from",
        "tools/generation/session.py",
        "                self.states, self.position, self.pending = self._before\n",
        "                pass\n",
        SHOWN,
    ),
    Mutant(
        "session: the string that ends a turn is remembered",
        "tools/generation/session.py",
        "                self._go_back(*shown.before_stop())\n",
        "",
        SHOWN,
    ),
    Mutant(
        "session: going back leaves half of a character",
        "tools/generation/session.py",
        "        if piece:\n            self._places",
        "        if True:\n            self._places",
        SHOWN,
    ),
    Mutant(
        "session: the beginning of a stop string is shown",
        "tools/generation/session.py",
        "else len(self._text) - self._beginning(self._text[self._seen :])",
        "else len(self._text)",
        SHOWN,
    ),
    Mutant(
        "session: a prompt that was cut off is forgotten",
        "tools/generation/session.py",
        "self.pending[count:]",
        "[]",
        PROMPT,
    ),
    Mutant(
        "session: each turn draws its uniforms from the start",
        "tools/generation/session.py",
        "sampling, self.states, self.position)",
        "sampling, self.states, 0)",
        TURNS,
    ),
    Mutant(
        "session: a state is stored without its position",
        "tools/generation/session.py",
        '"position": str(self.position)',
        '"position": "1"',
        TURNS,
    ),
    Mutant(
        "jax: padding before a prompt is absorbed",
        "jax_impl/generation.py",
        "np.arange(t + missing) < missing",
        "np.arange(t + missing) < 0",
        DECODE,
    ),
    Mutant(
        "a long prompt is absorbed at once",
        "spec/sampling.py",
        "prompt_bt[:, start : start + PROMPT_PIECE]",
        "prompt_bt[:, start:]",
        PROMPT,
    ),
)
