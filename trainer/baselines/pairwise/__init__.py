"""Baselines of JIFR, one short module each: a `PairScorer` made from the configuration and what it is made for."""
