"""Hands what was learned of videos to pipelines that run at another pace."""
