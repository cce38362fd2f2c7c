"""The parts of `synthkd compress` and `synthkd audit`: flows, attacks, the search of a student, exports."""
