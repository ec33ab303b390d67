"""Report: all that was measured in; a page for people, numbers for programs and model cards out.

In   artifacts: metrics, curves, samples and timings of every stage; params.yaml, which names what to show
Out  summary.json: every evaluated model, what it is relative to the teacher, what distillation cost, the gates'
     verdicts; cards/EXPORT.md: a model card for every export. Both are the same on every machine.
     report.html: the same and more to look at, with this machine's speeds; it needs nothing but a browser

The teacher is the gates' or else the model called `teacher` or else the first under `eval.models`; the model that ships
is the gates' or else the last. A measure that was not run leaves its cells "not measured".
"""
