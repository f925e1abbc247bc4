"""The only room that imports Ray: sessions, actors, the train job, supervision."""
