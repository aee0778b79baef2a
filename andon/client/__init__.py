"""Typed clients of the five services: plain values in, plain values out, no protobuf outside."""
