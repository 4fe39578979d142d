/* The arguments of a function that METH_FASTCALL | METH_KEYWORDS declares: by place or by name. */
#ifndef MSRWARD_ARGUMENTS_H
#define MSRWARD_ARGUMENTS_H

#include <Python.h>

#include <stdint.h>

struct call {
	PyObject *const *args;
	Py_ssize_t n;
	PyObject *names;
};

/* The name of an argument; who calls it by name most often gives the very object. */
struct word {
	const char *text;
	PyObject *interned;
};

static inline Py_ssize_t place_of(PyObject *name, const struct word *words, Py_ssize_t n_words)
{
	Py_ssize_t i;

	for (i = 0; i < n_words; i++)
		if (name == words[i].interned)
			return i;
	for (i = 0; i < n_words; i++)
		if (!PyUnicode_CompareWithASCIIString(name, words[i].text))
			return i;
	return -1;
}

/* Up to n_words arguments, by place or by name; 0 with an error set. */
static inline int arguments(struct call *call, const struct word *words, Py_ssize_t n_words,
			    PyObject **given)
{
	Py_ssize_t i, n_names = call->names ? PyTuple_Size(call->names) : 0;

	if (call->n > n_words) {
		PyErr_Format(PyExc_TypeError, "takes at most %zd arguments, not %zd", n_words, call->n);
		return 0;
	}
	for (i = 0; i < call->n; i++)
		given[i] = call->args[i];
	for (i = 0; i < n_names; i++) {
		PyObject *name = PyTuple_GetItem(call->names, i);
		Py_ssize_t place = place_of(name, words, n_words);

		if (place < 0 || given[place]) {
			PyErr_Format(PyExc_TypeError, "takes no %R, or takes it once", name);
			return 0;
		}
		given[place] = call->args[call->n + i];
	}
	return 1;
}

/* 64 bits, unsigned; 0 with an error set, which says whose data it is. */
static inline int fits(PyObject *value, const char *whose, uint64_t *data)
{
	PyObject *number = PyNumber_Index(value);

	if (!number)
		return 0;
	*data = PyLong_AsUnsignedLongLong(number);
	if (*data == UINT64_MAX && PyErr_Occurred()) {
		PyErr_Clear();
		PyErr_Format(PyExc_ValueError, "%s must fit 64 bits unsigned, not %S", whose, number);
		Py_DECREF(number);
		return 0;
	}
	Py_DECREF(number);
	return 1;
}

static inline int intern(struct word *words, int n)
{
	int i;

	for (i = 0; i < n; i++)
		if (!(words[i].interned = PyUnicode_InternFromString(words[i].text)))
			return 0;
	return 1;
}

#endif
