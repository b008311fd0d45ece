"""Faults of what people see: text that comes in, pictures, what TensorBoard is told."""

from parity.suite.mutants.mutant import Mutant

HUB = ("parity/tests/data/test_hub.py",)
PARTS = ("parity/tests/data/test_prepare_split.py",)
HALF_LIVES = ("parity/tests/cli/test_plot_half_lives.py",)
REACH = ("parity/tests/cli/test_plot_reach.py",)
TENSORBOARD = ("parity/tests/training/test_tensorboard.py",)
PAGE = ("parity/tests/ui/test_ui.py",)
SERVER = ("parity/tests/ui/test_ui_server.py",)
PICTURE = ("parity/tests/ui/test_ui_states.py",)

PEOPLE = (
    Mutant(
        "hub: a download that broke off begins again",
        "tools/data/hub.py",
        "resume_size=target.tell()",
        "resume_size=0",
        HUB,
    ),
    Mutant(
        "hub: any bytes will do",
        "tools/data/hub.py",
        "    if digest != file.sha256:\n",
        "    if False:\n",
        HUB,
    ),
    Mutant(
        "prepare: --max-tokens takes a document more",
        "tools/data/prepare.py",
        "self.tokens >= self._limit",
        "self.tokens > self._limit",
        PARTS,
    ),
    Mutant(
        "half-lives without delta_min",
        "tools/plot/half_life.py",
        " + config.delta_min",
        "",
        HALF_LIVES,
    ),
    Mutant(
        "half-lives on text from the output gate",
        "tools/plot/half_life.py",
        "pre_btx[..., d : 2 * d]",
        "pre_btx[..., 2 * d :]",
        HALF_LIVES,
    ),
    Mutant(
        "reach: distances run the wrong way",
        "tools/plot/reach.py",
        "return norm_t[::-1]",
        "return norm_t",
        REACH,
    ),
    Mutant(
        "reach: the loss of the first position",
        "spec/reference/model.py",
        "x_gradient[:, -1:], _ = rms",
        "x_gradient[:, :1], _ = rms",
        REACH,
    ),
    Mutant(
        "tensorboard: the step that is made again stays",
        "tools/training/tensorboard.py",
        "purge_step=step + 1",
        "purge_step=step + 2",
        TENSORBOARD,
    ),
    Mutant(
        "page: all browsers write one text",
        "tools/ui/controller.py",
        "            if browser not in self._texts:\n",
        '            browser = "any"\n            if browser not in self._texts:\n',
        PAGE,
    ),
    Mutant(
        "page: Stop is not heard",
        "tools/ui/generation_task.py",
        "        while live and not self.stopped:\n",
        "        while live:\n",
        PAGE,
    ),
    Mutant(
        "page: one model goes on with another one's state",
        "tools/ui/generation_task.py",
        "        elif self._from != source:\n",
        "        elif False:\n",
        PAGE,
    ),
    Mutant(
        "page: a token of the text is taken for HTML",
        "tools/ui/state_view.py",
        "html.escape(label)",
        "label",
        PICTURE,
    ),
    Mutant(
        "page: any name that points here is served",
        "tools/ui/command.py",
        "allowed_hosts=names",
        'allowed_hosts=["*"]',
        SERVER,
    ),
)
