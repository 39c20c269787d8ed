"""A library's own random draws, replaced by the noise of a vector, for adapters.

with given(torch, 'randn_like', noise):   # the library's next and only draw of this kind gives `noise`
    attack(...)
"""

from contextlib import contextmanager
from unittest import mock


@contextmanager
def given(
    owner,  # whose function makes the draw: a module, a class or an object
    name,  # of that function
    *values,  # what its calls return, in order
    in_place=False,  # it is a method that fills its tensor and returns it, such as torch.Tensor.uniform_
    all_used=True,  # False: the library may end before it has used all values
):
    "The draws `owner.name` give these values; a draw more or less is an error. It gives what is left"
    left = list(values)

    def draw(*args, **options):
        if not left:
            raise AssertionError(f'{name} was called more than {len(values)} times')
        value = left.pop(0)
        if not in_place:
            return value
        assert args[0].shape == value.shape, f'{name} fills {args[0].shape}, not {value.shape}'
        return args[0].copy_(value)

    with mock.patch.object(owner, name, draw):
        yield left
    if left and all_used:
        raise AssertionError(f'{name} was called {len(values) - len(left)} times, not {len(values)}')
