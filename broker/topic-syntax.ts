export { isCleanText, isTopicFilter, isTopicName, levelsOf } from '#shared/topic-syntax'
