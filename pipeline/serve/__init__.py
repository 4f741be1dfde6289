"""The web page of live runs: pictures, figures, switches, recordings, and what other programs ask a server.

    LiveRun -> feeds (a thread per picture that somebody watches) -> WebRTC or MJPEG -> browser
            -> figures (JSON), scrape (Prometheus)                -> routes, access  -> server

Files of this folder need the extra ``serve``; nothing outside loads them before ``--serve`` is given, but for
`pipeline.serve.listen`. Nothing here runs on the run's own threads: it can slow a run only by the CPU it takes.
"""
