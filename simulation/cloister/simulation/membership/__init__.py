"""The membership audit: shadow federations trained side by side, attacks on the released model and on models trained like it."""
