"""Holds the course: checks that tell a student what is wrong, and a grader for submissions.

The assignments are written in ``book/assignments/``, with solutions and hidden tests. From each,
``make course`` makes what students get, its solution, and its tests. Students' notebooks import
their checks from here: plain functions that need nothing but the package.
"""
