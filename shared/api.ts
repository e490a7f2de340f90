/**
 * Schemas of the HTTP APIs. The device API and EST are on the enrollment listener, everything under `/v1/` here
 * that is not `/v1/enroll`, `/v1/renew` or `/v1/ca` is on the admin listener. Errors are {@link Problem} documents
 * (RFC 9457). Times are milliseconds since 1970 UTC; certificates are PEM.
 */
export * from './api/bootstrap.ts'
export * from './api/clones.ts'
export * from './api/devices.ts'
export * from './api/events.ts'
export * from './api/fleets.ts'
export * from './api/keys.ts'
export * from './api/manufacturers.ts'
export * from './api/plane.ts'
export * from './api/plans.ts'
export * from './api/policies.ts'
export * from './api/profile.ts'
export * from './api/rollover.ts'
export * from './api/rotations.ts'
export * from './api/second-factors.ts'
