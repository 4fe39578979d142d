/* vmm._entry: the one way into a vCPU, as a Python type that Vcpu is made of.
 *
 * On a CPU that comes back from a guest every cache and every prediction is cold, so that each line
 * of Python and each object more would be felt: an exit that is the same as the one before is the
 * same value, without a line of Python. All others are made by _decode, which Vcpu has.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "arguments.h"
#include "entry.h"

/* last is the value of the last MSR exit, whose reason and kvm_run.msr are last_reason and
 * last_msr; they change only under the GIL. */
typedef struct {
	PyObject_HEAD
	struct entry in;
	PyObject *last;
	int last_reason;
	msr_exit last_msr;
} Entry;

static struct word run_words[] = { { "reply", NULL }, { "fail", NULL } };
static struct word reply_words[] = { { "data", NULL } };

static int answer_of(PyObject *const *given, struct answer *answer)
{
	int fail = given[1] ? PyObject_IsTrue(given[1]) : 0;
	int reply = given[0] && given[0] != Py_None;

	if (fail < 0)
		return 0;
	if (fail && reply) {
		PyErr_SetString(PyExc_ValueError, "run(reply=..., fail=True): an access has one answer only");
		return 0;
	}
	answer->is_given = fail || reply;
	answer->error = (uint8_t)fail;
	return !reply || fits(given[0], "run: reply", &answer->data);
}

static PyObject *decoded(Entry *vcpu, int reason, const msr_exit *msr)
{
	int is_msr = reason == KVM_EXIT_X86_RDMSR || reason == KVM_EXIT_X86_WRMSR;
	Py_ssize_t size = is_msr ? (Py_ssize_t)sizeof(*msr) : 0;
	PyObject *exit, *before;

	exit = PyObject_CallMethod((PyObject *)vcpu, "_decode", "iy#", reason,
				   (const char *)msr, size);
	if (exit && is_msr) {
		before = vcpu->last;
		Py_INCREF(exit);
		vcpu->last = exit;
		vcpu->last_reason = reason;
		vcpu->last_msr = *msr;
		Py_XDECREF(before);
	}
	return exit;
}

PyDoc_STRVAR(run_doc,
"run($self, /, reply=None, fail=False)\n--\n\n"
"Answer the pending MSR exit, if told how, and enter the guest until its next exit.\n\n"
"``reply`` lets the access succeed (a RDMSR with that value), ``fail`` has it raise #GP; with\n"
"neither, what ``self.reply`` or ``self.fail`` left counts. ``KvmError`` with EINTR for a\n"
"signal or a kick, ``Busy`` while another thread is in it; ``ValueError``, the guest not\n"
"entered, for both or without an exit.");

static PyObject *run(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
	Entry *vcpu = (Entry *)self;
	struct call call = { args, n, names };
	PyObject *given[2] = { NULL, NULL };
	struct answer answer = { 0, 0, 0 };
	PyThreadState *thread;
	msr_exit msr = { 0 };
	int reason;

	if (!arguments(&call, run_words, 2, given) || !answer_of(given, &answer))
		return NULL;
	thread = PyEval_SaveThread();
	reason = answer_and_enter(&vcpu->in, &answer, &msr);
	PyEval_RestoreThread(thread);
	if (vcpu->last && reason == vcpu->last_reason &&
	    !memcmp(&msr, &vcpu->last_msr, sizeof(msr))) {
		Py_INCREF(vcpu->last);
		return vcpu->last;
	}
	return decoded(vcpu, reason, &msr);
}

PyDoc_STRVAR(reply_doc,
"reply($self, /, data=0)\n--\n\n"
"Answer an MSR exit: the access succeeds at the next run, a RDMSR with ``data``.");

static PyObject *reply(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
	Entry *vcpu = (Entry *)self;
	struct call call = { args, n, names };
	PyObject *given[1] = { NULL };
	uint64_t data = 0;

	if (!arguments(&call, reply_words, 1, given) ||
	    (given[0] && !fits(given[0], "reply: data", &data)))
		return NULL;
	/* After the arguments: the __index__ of one may close the vCPU. */
	if (!(vcpu->in.state & OPEN))
		return PyObject_CallMethod(self, "_must_be_open", "s", "reply");
	vcpu->in.run->msr.data = data;
	vcpu->in.run->msr.error = 0;
	Py_RETURN_NONE;
}

PyDoc_STRVAR(open_doc, "Enter ``fd`` from now on, whose kvm_run is mapped at ``address``.");

static PyObject *open_entry(PyObject *self, PyObject *args)
{
	Entry *vcpu = (Entry *)self;
	unsigned long long address;
	int fd;

	if (vcpu->in.run || !PyArg_ParseTuple(args, "iK", &fd, &address))
		return vcpu->in.run ? PyErr_Format(PyExc_ValueError, "opened twice") : NULL;
	vcpu->in.fd = fd;
	vcpu->in.run = (struct kvm_run *)(uintptr_t)address;
	__atomic_store_n(&vcpu->in.state, OPEN, __ATOMIC_SEQ_CST);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(claim_doc, "Be the one thread in it: 0, or -EBADF (closed), or ``BUSY``.");

static PyObject *claim_entry(PyObject *self, PyObject *unused)
{
	(void)unused;
	return PyLong_FromLong(claim(&((Entry *)self)->in));
}

PyDoc_STRVAR(unclaim_doc, "Leave it; whether it was retired meanwhile.");

static PyObject *unclaim_entry(PyObject *self, PyObject *unused)
{
	(void)unused;
	return PyBool_FromLong(unclaim(&((Entry *)self)->in));
}

PyDoc_STRVAR(retire_doc, "Let no thread in any more; whether one is in it.");

static PyObject *retire_entry(PyObject *self, PyObject *unused)
{
	(void)unused;
	return PyBool_FromLong(retire(&((Entry *)self)->in));
}

PyDoc_STRVAR(thread_doc, "The kernel's id of the last thread that claimed it.");

static PyObject *thread_of_entry(PyObject *self, PyObject *unused)
{
	(void)unused;
	return PyLong_FromLong(__atomic_load_n(&((Entry *)self)->in.tid, __ATOMIC_RELAXED));
}

static void forget(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	freefunc free = (freefunc)PyType_GetSlot(type, Py_tp_free);

	Py_CLEAR(((Entry *)self)->last);
	free(self);
	Py_DECREF(type);
}

#define FAST(name) (PyCFunction)(void (*)(void))name, METH_FASTCALL | METH_KEYWORDS, name##_doc

static PyMethodDef methods[] = {
	{ "run", FAST(run) },
	{ "reply", FAST(reply) },
	{ "_open", open_entry, METH_VARARGS, open_doc },
	{ "_claim", claim_entry, METH_NOARGS, claim_doc },
	{ "_unclaim", unclaim_entry, METH_NOARGS, unclaim_doc },
	{ "_retire_entry", retire_entry, METH_NOARGS, retire_doc },
	{ "_thread", thread_of_entry, METH_NOARGS, thread_doc },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot slots[] = {
	{ Py_tp_doc, (void *)"A vCPU's ``kvm_run`` and the one way into it; ``_decode`` makes its exits." },
	{ Py_tp_methods, methods },
	{ Py_tp_dealloc, (void *)forget },
	{ 0, NULL },
};

static PyType_Spec spec = {
	"vmm._entry.Entry", sizeof(Entry), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots,
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT, "vmm._entry", "The one way into a vCPU.", -1,
	NULL, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__entry(void)
{
	PyObject *made = PyModule_Create(&module), *type = PyType_FromSpec(&spec);

	if (!made || !type || !intern(run_words, 2) || !intern(reply_words, 1) ||
	    PyModule_AddIntConstant(made, "NOT_PENDING", NOT_PENDING) ||
	    PyModule_AddIntConstant(made, "GONE", GONE) ||
	    PyModule_AddIntConstant(made, "BUSY", BUSY) ||
	    PyModule_AddObjectRef(made, "Entry", type)) {
		Py_XDECREF(type);
		Py_XDECREF(made);
		return NULL;
	}
	Py_DECREF(type);
	return made;
}
