"""What walvec says about itself: metrics for Prometheus, structured logs for people and collectors."""
