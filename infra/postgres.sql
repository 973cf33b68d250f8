-- The databases of the two servers; run once, when the PostgreSQL server is new (compose does it).
CREATE DATABASE mlflow;
CREATE DATABASE prefect;
