"""scripts/describe.py with a language model of transformers: a tiny random GPT-2."""

import json

import pytest
import torch

from scripts import describe
from scripts.describing.local import LocalModel
from scripts.describing.text import ModelError

MESSAGES = [{"role": "system", "content": "red red"}, {"role": "user", "content": "blue wing"}]
WORDS = "red blue pale dark wing tail beak leg with long short and round sharp stripes dots on in"
VOCABULARY = ["<end>", "<unk>", '", "', *WORDS.split()]
CHAT = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}long tail{% endif %}"
)


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory) -> str:
    """Two layers of width 16 that say the words of the vocabulary at random."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")

    directory = tmp_path_factory.mktemp("gpt2")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {word: number for number, word in enumerate(VOCABULARY)}, unk_token="<unk>"
        )
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(VOCABULARY),
        n_positions=1024,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)
    return str(directory)


def test_it_describes(model_directory, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("jay\nwren\n")
    out = tmp_path / "out.json"
    words = ["--classnames", str(tmp_path / "names.txt"), "--output", str(out), "--device", "cpu"]
    words += ["--local", model_directory, "--sentences", "2", "--temperature", "1"]
    assert describe.main([*words, "--attempts", "50"]) == 0
    content = json.loads(out.read_text())
    assert list(content) == ["jay", "wren"]
    spoken = {word for texts in content.values() for text in texts for word in text.split()}
    assert {word.rstrip(".") for word in spoken} <= {*VOCABULARY, "<unk>"}
    assert [len(texts) for texts in content.values()] == [2, 2]
    assert describe.main(words) == 0
    assert "0 requests" in capsys.readouterr().out
    assert json.loads(out.read_text()) == content


def test_the_seed_repeats_an_answer(model_directory):
    answers = []
    for seed in (1, 1, 2):
        model = LocalModel(model_directory, device="cpu", seed=seed, new_tokens=40)
        answers.append([model(MESSAGES) for _ in range(3)])
    assert answers[0] == answers[1] != answers[2]
    assert len(set(answers[0])) == 3
    assert all(answer.startswith('["') for answer in answers[0])


def test_an_answer_is_as_long_as_allowed_and_without_the_request(model_directory, monkeypatch):
    model = LocalModel(model_directory, device="cpu", new_tokens=40)
    generate, lengths = model.model.generate, []

    def measured(**words):
        output = generate(**words)
        lengths.append(output.shape[1] - words["input_ids"].shape[1])
        return output

    monkeypatch.setattr(model.model, "generate", measured)
    answers = [model(MESSAGES).removeprefix('["') for _ in range(5)]
    assert 5 < max(lengths) <= 40
    assert not any("red red\n\nblue wing" in answer for answer in answers)
    assert model.requests == 5


def test_chat_template_is_used_where_there_is_one(model_directory):
    model = LocalModel(model_directory, device="cpu", new_tokens=40)
    model.tokenizer.chat_template = CHAT
    seen = []
    generate = model.model.generate
    model.model.generate = lambda **kwargs: seen.append(kwargs) or generate(**kwargs)
    answer = model(MESSAGES)
    said = model.tokenizer.decode(seen[0]["input_ids"][0])
    assert said == "<unk> red red <unk> blue wing long tail"
    assert seen[0]["do_sample"] is True
    assert not answer.startswith('["')


def test_request_longer_than_the_context(model_directory):
    model = LocalModel(model_directory, device="cpu")
    with pytest.raises(ModelError, match="context of 1024 tokens has no room .* of 1001"):
        model([{"role": "user", "content": "red " * 1000}])


def test_no_model_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "names.txt").write_text("jay\n")
    words = ["--classnames", str(tmp_path / "names.txt"), "--output", str(tmp_path / "o.json")]
    assert describe.main([*words, "--local", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: --local {tmp_path}: no model there")
    assert "Traceback" not in error
    assert describe.main([*words, "--local", str(tmp_path), "--device", "cuda:77"]) == 1
    assert "DEVICE is cuda:77" in capsys.readouterr().err
