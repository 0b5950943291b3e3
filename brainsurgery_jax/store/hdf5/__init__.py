"""Files of HDF5, such as weights of Keras."""
