"""Frameworks on a registry, one module each, imported only by programs that use the framework.

They use the public methods of handles, and of the rest of this package what an application has no
use for: checkouts in the name of the code that has called the framework (`Checkout.bound`), what
each connection is set up with once (`keep_settings`), the cursors that tell the pool of what they
leave behind, and whether a test rolls everything back (`Database.sharing`).
"""
