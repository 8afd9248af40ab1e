"""`embark console`: the state of the archive as a web page, for people.

parts.py        scrapes the metrics of EmbArk, KFC and Retina, and tells what they counted since the last time
trail.py        keeps these for a quarter of an hour; vitals.py makes rates and quantiles of them
figures.py      charts of the trail, and the same as tables
archive.py      reads status and neighbours of keys, and asks for nothing; near.py keeps what it has searched
encoders.py     registered encoders, how many items each has, and its coverage
newest.py       the items that came last; items.py one of them
letters.py      dead letters by reason, and their retry
kept.py         readings that a thread of their own keeps fresh, while somebody looks
state.py        all of it together: the page and `--json` show the same
access.py       who may see and do what; guard.py what every question must and every answer carries
actions.py      what may be changed
thumbnails.py   pictures, without the browser asking strangers
pages.py        templates filled in; app.py the web application; running.py the process; command.py the command
"""
