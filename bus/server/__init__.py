"""XMPP servers that Spinal starts by itself: embedded, Prosody and ejabberd behind one contract."""
