"""Requests to workers and streams of answers back, over exchangeable transports."""
