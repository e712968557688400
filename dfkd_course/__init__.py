"""The course: checks that tell a student what is wrong, and a grader for an instructor's folder.

The assignments are written in ``book/assignments/``, solutions and hidden tests included;
``make course`` makes of each what students get, its solution, and its tests. Students' notebooks
import their checks from here: plain functions that need nothing beyond the package.
"""
