"""The Control API: what may be changed at run time, by whom, and what that leaves in `tidegate.config`.

Pure, but for `core.control.io`: `ledger` reads the topic, `access` knows who may do what, `control` plans each change as the records that
make it, `audit` keeps who did what.
"""
