"""Muon on several processes: who computes what is planned, then two all-to-alls a wave move the pieces."""
