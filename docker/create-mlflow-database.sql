CREATE DATABASE mlflow OWNER evenload;
