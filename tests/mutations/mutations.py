"""The mutations: what is broken, where, and which test must notice.

Each entry changes one place of the product. `old` is text that occurs once in `file`; `new` takes its
place, with MUTANT standing for "this mutation is switched on". Without the switch the code is what
it was. `tests` are program and filter; the first one that fails kills the mutation.

OPEN names those that no test has noticed yet: each is a gap in the checkers, to be closed.
"""
import fabric
import handoff
import rendezvous
import router
import security
import transport

MUTATIONS = [*transport.MUTATIONS, *fabric.MUTATIONS, *handoff.MUTATIONS, *rendezvous.MUTATIONS,
             *router.MUTATIONS, *security.MUTATIONS]

OPEN: set[str] = set()
