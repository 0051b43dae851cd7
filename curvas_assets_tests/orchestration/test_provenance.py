"""Claims proved here.

- The commit is the one that an image names, or else the checkout's; a package inside another repository has none.
"""

import subprocess

from curvas_assets.orchestration import provenance


def test_the_commit_is_that_of_the_code_and_never_of_a_repository_around_it(tmp_path, monkeypatch):
    monkeypatch.delenv("CURVAS_GIT_COMMIT", raising=False)
    code = tmp_path / "site-packages" / "provenance.py"
    code.parent.mkdir()
    code.touch()
    monkeypatch.setattr(provenance, "__file__", str(code))
    assert provenance.git_commit() == "unknown"

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    provenance._of_checkout.cache_clear()  # as another process
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    assert provenance.git_commit() == "unknown"
    git("add", ".")
    git("commit", "-q", "-m", "ours")
    provenance._of_checkout.cache_clear()
    commit = provenance.git_commit()
    assert len(commit) >= 12
    assert git("rev-parse", "HEAD").startswith(commit)
    monkeypatch.setenv("CURVAS_GIT_COMMIT", "1234abcd")
    assert provenance.git_commit() == "1234abcd"
