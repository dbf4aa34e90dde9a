from tests.unit.edge.playbook import edge

__all__ = ["edge"]
