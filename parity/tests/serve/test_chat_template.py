"""Chat templates: what transformers' have, and nothing that reaches out of the sandbox."""

from __future__ import annotations

import datetime

import pytest

pytest.importorskip("prometheus_client", reason="pip install 'liquidnet-dual[serve]'")

from tools.serve.chat_template import ChatTemplate, TemplateRefusal

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""


def test_a_template_of_many_models():
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
    assert ChatTemplate(CHATML).render(MESSAGES) == [text + "<|im_start|>assistant\n"]
    assert ChatTemplate(CHATML).render(MESSAGES, add_generation_prompt=False) == [text]


@pytest.mark.parametrize(
    "source, pieces",
    [
        ("{{ bos_token }}a{{ eos_token }}{{ eos_token }}b", ["a", None, None, "b"]),
        ("{{ messages[0] | tojson }}", ['{"role": "user", "content": "Hi"}']),
        ("{{ ['<é>'] | tojson }}", ['["<é>"]']),
        ("{{ strftime_now('%Y') }}", [str(datetime.datetime.now().year)]),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}", ["Ho"]),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}!", ["Ho!"]),
        ("  {% if true %}\n  x\n  {% endif %}\n", ["  x\n"]),
        ("{{ continues }}", ["False"]),
    ],
)
def test_what_templates_use(source, pieces):
    assert ChatTemplate(source).render(MESSAGES) == pieces


def test_a_template_that_is_no_program_is_refused():
    for source in ("{% if %}", "{{ 1 +", "{% break %}"):
        with pytest.raises(ValueError, match="it is no Jinja2: line 1"):
            ChatTemplate(source)


def test_nobody_can_write_the_end_of_text():
    template = ChatTemplate("{{ messages[0].content }}{{ eos_token }}")
    marks = {template.render([{"role": "user", "content": text}])[0] for text in ("\ue000\ue000", "\ue000" + "0" * 32)}
    assert marks == {"\ue000\ue000", "\ue000" + "0" * 32}


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ undefined.x }}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{{ range(10000000) | list }}",
        "{% include 'x' %}",
    ],
)
def test_what_a_template_cannot_do(source):
    with pytest.raises(TemplateRefusal):
        ChatTemplate(source).render(MESSAGES)


def test_a_template_that_is_none_says_where():
    with pytest.raises(ValueError, match="line 2: "):
        ChatTemplate("a\n{% if %}")
