"""SMYRF as an attention implementation of transformers.

`import smyrf.transformers` registers an attention function and a mask function under the name
"smyrf". A model loaded with `attn_implementation="smyrf"` then runs smyrf's `auto`; `enable`
switches a loaded model in place to any method, and `disable` switches it back.
"""

from smyrf.integrations.transformers import NAME, disable, enable

__all__ = ["NAME", "disable", "enable"]
