# Thin names for ./run, which also works where make is absent.
.PHONY: check demo
check:
	./run test
demo:
	./run demo
