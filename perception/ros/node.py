"""The lifecycle node: what of ROS there is around `perception.node.run`. Imports rclpy, so it is imported when it is started.

The executor, in the caller's thread, only hands on what comes; the loop has threads of its own, as it has everywhere.
"""

from __future__ import annotations

import difflib
import importlib
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import rclpy
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter as RosParameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import Trigger

from calibration.camera import Intrinsics
from engine.base import Engine
from engine.contract import EngineError, ModelError
from perception.causes import Cause, Code
from perception.config import Config
from perception.errors import BadInput, FreespaceError
from perception.messages import Messages, intrinsics_from_message
from perception.metres import Rulers
from perception.monitor import Monitor
from perception.node import run
from perception.ros.outputs import (
    DEBUG,
    DEBUG_KIND,
    DebugSink,
    PictureSink,
    ResultSink,
    Snapshot,
    Topic,
    picture_topics,
    result_topics,
)
from perception.ros.parameters import CHANGEABLE, NODE, Parameter, parameters, settings, span
from perception.ros.source import TopicSource
from perception.session import describe_engine, open_configured
from perception.status import Status

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

SPIN_S = 0.1  # how often it is looked whether it has been stopped
DIAGNOSTICS_S = 1.0
STOPPING_S = 5.0  # a network that takes longer for one image hangs
SILENT_S = 1.0  # without an image for so long, it is asked why
SAME_LENS = 0.03  # focal lengths that differ by more, relatively, are of two cameras
KNOWN_ERRORS = (FreespaceError, ModelError, EngineError)  # with a sentence for the user

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
RELIABILITIES = {"best_effort": ReliabilityPolicy.BEST_EFFORT, "reliable": ReliabilityPolicy.RELIABLE}


def spin(arguments: Sequence[str], stop: threading.Event) -> None:
    """Run the node until ``stop`` is set; as `perception.ros.start`."""
    try:
        rclpy.init(args=list(arguments), signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        raise BadInput(f"ROS does not take these arguments: {error}") from error
    try:
        node = FreespaceNode()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            if node.own.autostart:
                node.start()
            while not (stop.is_set() or node.finalized or (node.own.autostart and node.failure)):
                executor.spin_once(SPIN_S)
            if node.own.autostart and node.failure:
                raise node.failure
        finally:
            node.end()
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


class FreespaceNode(LifecycleNode):
    """The node ``freespace``.

    Attributes:
        failure: what it failed of last; None while all is well.
        finalized: whether it has been shut down.
        config, own: the settings that the parameters stand for.

    Raises:
        BadInput: a parameter has a value that it cannot have, or there is none of that name.
    """

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.finalized = False
        self._engine: Engine | None = None
        self._source: TopicSource | None = None
        self._monitor: Monitor | None = None
        self._lens: Intrinsics | None = None  # that metres are by
        self._loop: threading.Thread | None = None
        self._stop = threading.Event()
        self._changed: deque[Config] = deque(maxlen=1)
        self._entities: list[tuple[Any, Any]] = []  # of one activation: how each is destroyed, and what
        self._outputs: dict[str, Any] = {}
        self._snapshot = Snapshot()
        super().__init__(NODE)
        self._known = {parameter.name: parameter for parameter in parameters()}
        self._refuse_unknown()
        for parameter in self._known.values():
            self._declare(parameter)
        self.config, self.own = settings(self._values())
        self.add_on_set_parameters_callback(self._take)
        self._make = Messages(message_class)
        self._diagnostics = self.create_publisher(message_class("diagnostic_msgs/msg/DiagnosticArray"), "/diagnostics", 10)
        # Clocks of a simulation can stand still, and then something is to be said, too.
        self.create_timer(DIAGNOSTICS_S, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.create_service(Trigger, "~/snapshot", self._on_snapshot)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self._ended = self.create_guard_condition(self._on_ended)

    # -- Parameters ------------------------------------------------------------------------------------------------

    def _refuse_unknown(self) -> None:
        """Raise BadInput where a parameter is given that is misspelt: rclpy would not say so.

        One that is like none of ours may be another node's, in a file that several share: it is only said.
        """
        rclpys = {name for name in self._parameter_overrides if self.has_parameter(name) or name.startswith("qos_overrides.")}
        misspelt, foreign = list[str](), list[str]()
        sections = {name.partition(".")[0] for name in self._known if "." in name}
        for name in sorted(set(self._parameter_overrides) - set(self._known) - rclpys):
            hint = nearest(name, self._known)
            ours = hint or name.partition(".")[0] in sections
            (misspelt if ours else foreign).append(f"there is no parameter {name}{hint}")
        if misspelt:
            raise BadInput("; ".join(misspelt))
        for sentence in foreign:
            self.get_logger().warning(sentence)

    def _declare(self, parameter: Parameter) -> None:
        descriptor = ParameterDescriptor(
            description=parameter.description,
            additional_constraints=", ".join(parameter.choices),
            read_only=parameter.change == "never",
        )
        if parameter.bounded:
            limits = limits_of(parameter)
            if parameter.kind == "integer":
                descriptor.integer_range = [limits]
            else:
                descriptor.floating_point_range = [limits]
        try:
            self.declare_parameter(parameter.name, parameter.default, descriptor)
        except InvalidParameterValueException as error:
            given = self._parameter_overrides[parameter.name].value
            raise BadInput(f"{parameter.name} must be {span(parameter)}, and is {given}") from error
        except InvalidParameterTypeException as error:
            hint = "; a number needs its point: 60.0" if parameter.kind == "double" else ""
            raise BadInput(f"{parameter.name} must be of type {parameter.kind}{hint}: {error}") from error

    def _values(self) -> dict[str, Any]:
        return {name: self.get_parameter(name).value for name in self._known}

    def _take(self, given: list[RosParameter[Any]]) -> SetParametersResult:
        """Go on with these values, or say why they cannot be set now.

        rclpy has checked types and ranges before, so nobody refuses them afterwards.
        """
        known = {p.name: p.value for p in given if p.name in self._known}
        fixed = [name for name in known if self._known[name].change != "at once"]
        if fixed and self._engine:
            reason = f"{', '.join(fixed)}: takes effect when the node is configured; clean it up first"
            return SetParametersResult(successful=False, reason=reason)
        before = self.config
        try:
            config, own = settings({**self._values(), **known})
            if self._engine:
                self._engine.contract.plane_index(config.polygons.plane)
        except (BadInput, ModelError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        self.config, self.own = config, own
        if any(getattr(before, section) != getattr(config, section) for section in CHANGEABLE):
            self._changed.append(config)
        return SetParametersResult(successful=True)

    def _next_settings(self) -> Config | None:
        """What `perception.node.run` asks for, in its thread."""
        try:
            return self._changed.pop()
        except IndexError:
            return None

    # -- Lifecycle -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Configure and activate. Raises what it failed of."""
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()
        if self.failure:
            raise self.failure

    def end(self) -> None:
        """Stop what runs and release everything; from any state."""
        if not self.finalized:
            self.trigger_shutdown()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open the network, so that activation takes no time."""
        self.failure = None
        try:
            ground = self.config.ground
            self._lens = Rulers(ground, Path(ground.calibration)).camera.intrinsics if ground.calibration else None
            self._engine = open_configured(self.config.engine, throughput=False)
            self._engine.contract.plane_index(self.config.polygons.plane)
            pictures = picture_topics(self._make, self.own.occupancy_resolution_m)
            self._topics = self._known_here(result_topics(self._make)), self._known_here(pictures)
            for topic in (*self._topics[0], *self._topics[1], *(Topic(name, DEBUG_KIND, list, 10) for name in DEBUG.values())):
                quality = QoSProfile(depth=topic.waiting, reliability=ReliabilityPolicy.RELIABLE)
                self._outputs[topic.name] = self.create_lifecycle_publisher(message_class(topic.kind), topic.name, quality)
        except Exception as error:
            self.failure = error
            return TransitionCallbackReturn.ERROR
        self.get_logger().info(describe_engine(self._engine))
        return super().on_configure(state)

    def _known_here(self, topics: list[Topic]) -> list[Topic]:
        """The topics whose messages this ROS 2 has: before Iron there is no PolygonInstanceStamped."""
        known = []
        for topic in topics:
            try:
                message_class(topic.kind)
            except (ImportError, AttributeError):
                self.get_logger().warning(f"{topic.name} is left out: this ROS 2 has no {topic.kind}")
            else:
                known.append(topic)
        return known

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe, and begin."""
        assert self._engine is not None
        done = super().on_activate(state)
        compressed = self.own.image_transport == "compressed"
        topic = self.resolve_topic_name("image_raw") + ("/compressed" if compressed else "")
        engine, config = self._engine, self.config
        self._source = source = TopicSource(topic)
        self._monitor = monitor = Monitor(source, config.loop, True, engine.contract.sha256, engine.name)
        self._changed.clear()
        self._stop.clear()
        sinks = [
            ResultSink(self._topics[0], self._outputs),
            PictureSink(self._topics[1], self._outputs),
            DebugSink(self._make, self._outputs, lambda: self.get_clock().now().nanoseconds),
            self._snapshot,
        ]

        def loop() -> None:
            try:
                run(source, engine, sinks, config, self._stop, None, monitor, self._next_settings)
            except BaseException as error:
                self.failure = error
            if not self._stop.is_set():
                self._ended.trigger()

        self._loop = threading.Thread(target=loop, name="loop", daemon=True)
        self._loop.start()
        self._subscribe(topic, COMPRESSED if compressed else IMAGE, source)
        self.get_logger().info(f"active: takes images of {topic}")
        return done

    def _subscribe(self, topic: str, kind: str, source: TopicSource) -> None:
        quality = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=1,
            reliability=RELIABILITIES[self.own.reliability],
            durability=DurabilityPolicy.VOLATILE,
        )
        lost = SubscriptionEventCallbacks(message_lost=lambda event: source.missed(event.total_count_change))
        images = self.create_subscription(message_class(kind), topic, source.give, quality, event_callbacks=lost)
        self._entities.append((self.destroy_subscription, images))
        if self._lens:
            info = self.create_subscription(
                message_class("sensor_msgs/msg/CameraInfo"),
                "camera_info",
                self._on_camera_info,
                QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT),
            )
            self._entities.append((self.destroy_subscription, info))

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop; the last result says so."""
        failed = not self._halt() or self.failure is not None
        done = super().on_deactivate(state)
        return TransitionCallbackReturn.ERROR if failed else done

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the network."""
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """For good: the process ends, too."""
        self.finalized = True
        self._halt()
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Say what went wrong, and be unconfigured again."""
        error = self.failure or FreespaceError("the transition failed")
        sentence = str(error) if isinstance(error, KNOWN_ERRORS) else f"{type(error).__name__}: {error}"
        self.get_logger().error(sentence)
        self._publish_status(Status(state="error", causes=(Cause(Code.FAILED, sentence),), source=NODE))
        self._halt()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def _halt(self) -> bool:
        """Stop the loop; False: it does not stop."""
        self._stop.set()
        if self._source:
            self._source.close()
        for destroy, entity in self._entities:
            destroy(entity)
        self._entities.clear()
        if self._loop:
            self._loop.join(STOPPING_S)
            if self._loop.is_alive():
                self.failure = self.failure or EngineError(f"the network does not come back from an image in {STOPPING_S:g} s")
                return False
        self._loop = self._source = self._monitor = None
        return True

    def _release(self) -> None:
        for publisher in self._outputs.values():
            self.destroy_lifecycle_publisher(publisher)
        self._outputs.clear()
        engine, self._engine = self._engine, None
        if engine and self._loop is None:  # else it is still at work, and nobody may take its memory
            engine.close()

    def _on_ended(self) -> None:
        """The loop has ended by itself: it failed."""
        if self._loop and not self._stop.is_set():
            self.failure = self.failure or FreespaceError("the loop ended")
            self.trigger_deactivate()

    # -- What comes in, and is asked ---------------------------------------------------------------------------------

    def _on_camera_info(self, message: Any) -> None:
        """Is the camera the one that was calibrated?"""
        if self._lens is None:
            return
        try:
            told = intrinsics_from_message(message)
        except FreespaceError as error:
            self.get_logger().warning(str(error), once=True)
            return
        size = told.width, told.height
        ours, theirs = (lens.fx / lens.width for lens in (self._lens, told))
        if abs(theirs / ours - 1) > SAME_LENS:
            self.get_logger().warning(
                f"camera_info of {size[0]}x{size[1]} pixels has a focal length of {theirs:.3f} image widths, and "
                f"{self.config.ground.calibration} of {ours:.3f}: metres are by the file; is it of this camera?",
                once=True,
            )

    def _on_snapshot(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            response.message = str(self._snapshot.save(Path(self.own.snapshot_folder)))
            response.success = True
        except FreespaceError as error:
            response.message = str(error)
        return response

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._source is not None
        if self._source:
            self._source.begin_anew()
        else:
            response.message = "the node is not active"
        return response

    # -- How it is doing -------------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Once a second."""
        source, monitor = self._source, self._monitor
        if source is None or monitor is None:
            return
        if source.silent_s > SILENT_S:
            trouble = self._why_silent(source)
            if source.trouble is None or source.trouble.code is not trouble.code:
                self.get_logger().warning(trouble.text)
            source.trouble = trouble
        elif source.trouble and source.trouble.code is Code.UNSTAMPED:
            self.get_logger().warning(source.trouble.text, once=True)
        self._publish_status(monitor.status())

    def _publish_status(self, status: Status) -> None:
        if self._diagnostics.get_subscription_count():
            stamp_ns = self.get_clock().now().nanoseconds
            name = self.get_fully_qualified_name().lstrip("/")
            self._diagnostics.publish(self._make.diagnostics(status, stamp_ns, name))

    def _why_silent(self, source: TopicSource) -> Cause:
        """Why no image comes, as far as the graph of nodes tells."""
        topic = source.uri
        wanted = COMPRESSED if self.own.image_transport == "compressed" else IMAGE
        publishers = self.get_publishers_info_by_topic(topic)
        kinds = {info.topic_type for info in publishers}
        if not publishers:
            text = f"nobody publishes {topic}; is the camera's node running, in this namespace, with this ROS_DOMAIN_ID?"
            return Cause(Code.UNREACHABLE, text)
        if wanted not in kinds:
            return Cause(Code.UNREACHABLE, f"{topic} has messages of type {', '.join(sorted(kinds))}, and {wanted} is wanted")
        offered = {info.qos_profile.reliability for info in publishers if info.topic_type == wanted}
        if self.own.reliability == "reliable" and ReliabilityPolicy.RELIABLE not in offered:
            text = f"{topic} is published best effort, and reliability: reliable asks for more; set it to best_effort"
            return Cause(Code.UNREACHABLE, text)
        return Cause(Code.STALLED, f"no image on {topic} for {source.silent_s:.0f} s")


def nearest(name: str, known: Iterable[str]) -> str:
    """Which of the known names may be meant, as the end of a sentence; "" where none is alike."""
    alike = difflib.get_close_matches(name, known, 1)
    return f"; is {alike[0]} meant?" if alike else ""


def message_class(name: str) -> Any:
    """The class of the message ``package/msg/Name``."""
    package, _, kind = name.partition("/msg/")
    return getattr(importlib.import_module(f"{package}.msg"), kind)


def limits_of(parameter: Parameter) -> Any:
    """The range of a parameter as its descriptor has it, its ends included; what is narrower, `settings` refuses."""
    if parameter.kind == "integer":
        return IntegerRange(from_value=int(parameter.least), to_value=int(parameter.most), step=0)
    return FloatingPointRange(from_value=float(parameter.least), to_value=float(parameter.most), step=0.0)
