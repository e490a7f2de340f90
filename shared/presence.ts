/** Topics of the broker's own, for services: nobody publishes at or below it, and no device reads there. */
const PLANE = 'muster'

/** `muster/presence/<device>`: which devices are connected. */
export const PRESENCE = `${PLANE}/presence`

/** True at and below `muster`, whatever a policy says. */
export function isForServices(topic: string): boolean {
  return topic.startsWith(PLANE) && (topic.length === PLANE.length || topic[PLANE.length] === '/')
}
