"""What `mlic cluster check` finds wrong with nodes; the nodes of a real cluster are in test_slurm_nodes.py."""

from __future__ import annotations

import pytest

from mlic.cluster.check import ClusterReport, NodeReport, problems

VERSIONS = {
    "mlic": "0.8.0",
    "ray": "2.60.0",
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "numpy": "2.4",
    "pillow": "12.0",
}
GOOD = NodeReport(
    host="node1",
    address="10.0.0.1",
    cpus=8,
    gpus=4,
    python="3.11.7",
    versions=VERSIONS,
    files=65536,
    store=2 * 2**30,
    disk=100 * 2**30,
    skew_s=0.002,
    mb_per_s=1100.0,
    sees=True,
)


def nodes(**other: object) -> list[NodeReport]:
    """Three, of which the last differs."""
    return [GOOD.model_copy(update={"host": f"node{number}"} | (other if number == 3 else {})) for number in (1, 2, 3)]


def test_nothing_is_wrong() -> None:
    report = ClusterReport(nodes=nodes(), problems=problems(nodes()))
    assert report.exit_code == 0
    lines = report.text().splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["node1", "node2", "node3"]
    assert lines[-1] == "nothing is wrong"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"python": "3.12.1"}, "python is 3.11.7 on most nodes and 3.12.1 on node3: install the same on all."),
        ({"versions": VERSIONS | {"torch": "2.13.0"}}, "torch is 2.14.1 on most nodes and 2.13.0 on node3"),
        ({"versions": {}}, "mlic is 0.8.0 on most nodes and none on node3"),
        ({"sees": False}, "node3 does not share the folder: use storage"),
        ({"skew_s": -2.5}, "the clock of node3 is -2.5 s off: synchronize it"),
        ({"mb_per_s": 12.0}, "node3 sends 12 MB/s to the next node"),
        ({"files": 1024}, "a process on node3 may open 1024 files: ulimit -n 4096"),
        ({"store": 64 * 2**20}, "the object store of node3 has 64 MiB"),
        ({"disk": 2**30}, "node3 has 1.0 GiB of disk left for Ray"),
        ({"gpus": 2}, "nodes have different numbers of GPUs"),
    ],
)
def test_one_node_that_differs(other: dict[str, object], said: str) -> None:
    report = ClusterReport(nodes=nodes(**other), problems=problems(nodes(**other)))
    assert report.exit_code == 4
    assert said in report.problems[0]
    assert f"wrong  {report.problems[0]}" in report.text()
    assert len(report.problems) == len(VERSIONS) if other.get("versions") == {} else len(report.problems) == 1


def test_a_node_without_gpus_among_others_is_no_mistake() -> None:
    """The head of many clusters has none."""
    assert problems(nodes(gpus=0)) == []
