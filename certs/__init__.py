"""A small certificate authority for the link and its listeners. Imports nothing of Tidegate's.

profiles    what a certificate of each kind may do, and for how long
policy      who may have which name
authority   the root key, and signing
store       an authority as files in a directory
reading     what a certificate says
"""
