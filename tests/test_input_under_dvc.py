"""What a user does with a text and DVC: add, import, push, pull, queue, apply."""

import hashlib
import json
import shutil
from contextlib import contextmanager

import pytest
from test_end_to_end import dvc, git, new_project, python, set_params, small_text, wait_for_queue

from stages.lm.data.dataset import TokenData

pytestmark = pytest.mark.slow
UP_TO_DATE = "Data and pipelines are up to date"


@pytest.fixture
def project(tmp_path):
    """A project that has not run, without a text, and a remote."""
    folder = new_project(tmp_path / "project")
    (folder / "data" / "input.txt").unlink()
    dvc(folder, "remote", "add", "-d", "store", str(tmp_path / "store"))
    commit(folder)
    return folder


def commit(folder):
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "more", "--allow-empty")


def recorded(folder, revision=None):
    """`metrics/corpus.json`, of the workspace or of an experiment."""
    name = "metrics/corpus.json"
    return json.loads(
        git(folder, "show", f"{revision}:{name}") if revision else (folder / name).read_text()
    )


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def bring(folder, name):
    """Put a text, or documents, at `name` in `data/`, which `dvc add` is then given."""
    path = folder / "data" / name
    if path.suffix:
        path.parent.mkdir(exist_ok=True)
        path.write_text(small_text(), "utf-8")
        return path
    path.mkdir(exist_ok=True)
    for number, line in enumerate(small_text().splitlines()):
        (path / f"{number}.txt").write_text(line, "utf-8")
    return path


@pytest.mark.parametrize("name", ["input.txt", "input/mine.txt", "input/notes", "input"])
def test_a_clone_that_pulls_has_the_text_and_reruns_nothing(project, tmp_path, name):
    brought = bring(project, name)
    if name == "input":  # as DVC's message says
        assert "git rm -r --cached" in dvc(project, "add", str(brought), check=False).stderr
        git(project, "rm", "-rq", "--cached", "data/input")
    dvc(project, "add", str(brought))
    assert "is up to date" not in dvc(project, "repro").stdout
    assert (
        UP_TO_DATE in dvc(project, "repro").stdout and UP_TO_DATE in dvc(project, "status").stdout
    )
    commit(project)
    assert git(project, "ls-files", "data").count("txt\n") == 0
    dvc(project, "push")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(project), "clone")
    dvc(clone, "pull")
    assert UP_TO_DATE in dvc(clone, "repro").stdout
    for path in [brought] if brought.is_file() else brought.glob("*.txt"):
        assert (clone / path.relative_to(project)).read_bytes() == path.read_bytes()
    assert git(clone, "status", "--porcelain") == ""


@contextmanager
def object_store():
    """A server on the loopback that speaks S3; gives its address."""
    pytest.importorskip("dvc_s3")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


def test_a_text_is_imported_from_an_object_store(project, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with object_store() as address:
        import boto3

        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket="texts")
        client.put_object(Bucket="texts", Key="far.txt", Body=small_text().encode())
        dvc(project, "remote", "add", "far", "s3://texts")
        dvc(project, "remote", "modify", "far", "endpointurl", address)
        dvc(project, "import-url", "remote://far/far.txt", "data/input/far.txt")
        python(project, "-m", "stages.corpus")
        assert recorded(project)["sha256"] == sha256(small_text())


def test_a_text_is_imported_from_another_folder_and_updated(project, tmp_path):
    (tmp_path / "far.txt").write_text(small_text(), "utf-8")
    dvc(project, "import-url", str(tmp_path / "far.txt"), "data/input/far.txt")
    dvc(project, "repro")
    assert recorded(project)["sha256"] == sha256(small_text())
    (tmp_path / "far.txt").write_text(small_text() + "more\n", "utf-8")
    dvc(project, "update", "data/input/far.txt.dvc")
    dvc(project, "repro")
    assert recorded(project)["sha256"] == sha256(small_text() + "more\n")
    assert UP_TO_DATE in dvc(project, "status").stdout


def test_queued_runs_train_on_what_they_were_given(project):
    text = project / "data" / "input.txt"
    texts = {name: small_text() + f"version {name}\n" for name in ("one", "two", "three")}
    text.write_text(texts["one"], "utf-8")
    dvc(project, "add", "data/input.txt")
    set_params(project, {"train": {"epochs": 1}})
    dvc(project, "repro")
    commit(project)
    for name in ("one", "two"):
        text.write_text(texts[name], "utf-8")
        dvc(project, "exp", "run", "--queue", "-n", name, "-S", f"train.seed={len(texts[name])}")
    text.write_text(texts["three"], "utf-8")
    dvc(project, "queue", "start")
    assert "Failed" not in wait_for_queue(project, tasks=2)
    assert text.read_text("utf-8") == texts["three"]
    for name in ("one", "two"):
        revision = git(project, "rev-parse", f"refs/exps/{exp_ref(project, name)}").strip()
        assert recorded(project, revision)["sha256"] == sha256(texts[name])
    dvc(project, "add", "data/input.txt")
    dvc(project, "exp", "apply", "two")
    assert text.read_text("utf-8") == texts["two"] and UP_TO_DATE in dvc(project, "status").stdout


def exp_ref(folder, name):
    refs = git(folder, "for-each-ref", "--format=%(refname)", "refs/exps").split()
    return next(ref for ref in refs if ref.endswith(f"/{name}")).removeprefix("refs/exps/")


@pytest.mark.parametrize("name", ["input.txt", "input"])
def test_an_experiment_in_a_copy_takes_what_nothing_tracks(project, name):
    brought = bring(project, name)
    dvc(project, "repro")
    commit(project)
    dvc(project, "exp", "run", "--temp", "-n", "other", "-S", "train.epochs=1")
    revision = f"refs/exps/{exp_ref(project, 'other')}"
    assert recorded(project, revision)["sha256"] == recorded(project)["sha256"]
    before = [path.read_bytes() for path in sorted(brought.parent.rglob("*")) if path.is_file()]
    dvc(project, "exp", "apply", "other")
    assert before == [p.read_bytes() for p in sorted(brought.parent.rglob("*")) if p.is_file()]
    assert UP_TO_DATE in dvc(project, "status").stdout


def test_a_text_that_comes_later_takes_the_place_of_the_sample(project):
    python(project, "-m", "stages.corpus")
    assert recorded(project)["source"] == "sample"
    dvc(project, "commit", "-f", "corpus")
    bring(project, "input.csv").write_text("title\n" + small_text(), "utf-8")
    assert "modified:           data" in dvc(project, "status").stdout
    dvc(project, "repro")
    assert recorded(project)["source"] == "documents"
    data = TokenData.load(project / "models" / "tokens")
    assert data.documents.train > 200
    shutil.rmtree(project / "models" / "resume")
